"""The convolutions of the network in C++, and the plans that run them."""
