"""The Gymnasium environments around the decision process, single and batched, and their reward wrappers.
Read ``environments`` first."""
