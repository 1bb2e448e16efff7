//! Placeholder until the sockets are tested.
