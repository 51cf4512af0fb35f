//! Stdio service.
