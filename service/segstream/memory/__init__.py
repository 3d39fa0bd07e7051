"""Where memory lives between frames: page pool, memory banks, session store."""
