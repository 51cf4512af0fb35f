//! Stdio service.
fn main() {}
