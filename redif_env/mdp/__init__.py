"""The denoising Markov decision process: pure functions of batched states, with the maps of actions and
observations. Needs neither Gymnasium nor an RL library. Read ``process`` first."""
