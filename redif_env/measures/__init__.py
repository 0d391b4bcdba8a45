"""How samples are compared: distances between pairs, distances between sets, the feature networks that both look
through, and pictures of episodes. Read ``distances`` first."""
