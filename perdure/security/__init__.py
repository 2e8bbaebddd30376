"""Keys, sealing and dictionaries: what leaves the process is compressed, encrypted and authenticated."""
