"""What lies on disk: atomic files and folders, a cache of tensors keyed by their content, checkpoints without pickles,
and loaders of image data. Knows nothing of diffusion. Read ``files`` first."""
