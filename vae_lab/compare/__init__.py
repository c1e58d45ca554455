"""From run directories to an answer. torch is not needed here."""
