"""The one exception of this program."""


class PeerError(Exception):
    """Something the user can act on; the message names it and the way out. Ends the program with exit code 1."""
