"""The frozen many-step models behind one interface, whatever they were made from, and the reference sets of what they
make of given noises. Read ``teacher`` first."""
