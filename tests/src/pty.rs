//! A person at a terminal: types, and reads what appears.
