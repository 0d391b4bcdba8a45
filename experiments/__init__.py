"""Questions and their answers: programs that train teachers, compare samplers and time the environment."""
