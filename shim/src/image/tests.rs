//! Images as users have them, and as an attacker would make them.
