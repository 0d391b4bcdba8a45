"""Rivals of the students: each in its own file, fitted on the same teacher, noises and budget, judged by one judge."""
