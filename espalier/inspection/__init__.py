"""What ``espalier inspect`` shows: a document of the network, and tables on the terminal."""
