"""How far a run is: bars, lines, and curves for TensorBoard."""
