"""How many replicas a load needs: measured once, simulated before it is bought."""
