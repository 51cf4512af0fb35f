//! Errors of BProc's own, beside the system's errno numbers.

/// First number of BProc's own errors.
pub const BE_BASE: i32 = 300;
/// No such node.
pub const BE_INVALIDNODE: i32 = 300;
/// The node is down.
pub const BE_NODEDOWN: i32 = 301;
/// The process is on that node already.
pub const BE_SAMENODE: i32 = 302;
/// The node died in the middle of it.
pub const BE_SLAVEDIED: i32 = 303;
/// No such process in the space.
pub const BE_INVALIDPROC: i32 = 304;

/// Words for a number of BProc's own; `None` for the system's.
pub const fn describe(be: i32) -> Option<&'static str> {
    match be {
        BE_INVALIDNODE => Some("Invalid node number"),
        BE_NODEDOWN => Some("Node is down"),
        BE_SAMENODE => Some("Process is on that node already"),
        BE_SLAVEDIED => Some("Node died during the operation"),
        BE_INVALIDPROC => Some("No such process in the space"),
        _ => None,
    }
}
