"""From run directories to an answer: which variant is better, by how much, is it noise, at what cost. Reads files only."""
