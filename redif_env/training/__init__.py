"""What every training program needs, whatever its RL library: options, the run's folder, its cost before it starts, and
its report. Read ``command`` first."""
