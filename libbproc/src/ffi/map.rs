//! The node map of 0.x: the numbers that the program uses, on top of the real ones.
//!
//! One per process. A map that is replaced stays in memory: another thread may be looking at it.

use std::sync::atomic::{AtomicPtr, Ordering};

use libc::c_int;

use super::abi::{NODE_MASTER, NODE_NONE};
use super::{Result, beside, done, export};
use bproc_common::errno::BE_INVALIDNODE;
use bproc_common::id::NodeId;

static MAP: AtomicPtr<Vec<c_int>> = AtomicPtr::new(std::ptr::null_mut());

/// The map, if one is set.
pub(super) fn current() -> Option<&'static [c_int]> {
    // SAFETY: null, or a vector that was leaked by `set` and is never changed or freed.
    unsafe { MAP.load(Ordering::Acquire).as_ref() }.map(Vec::as_slice)
}

/// A node by the number that the master has for it. It is of another type than the numbers of the program, so that none is
/// mapped twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Real(c_int);

impl Real {
    pub(super) const MASTER: Real = Real(NODE_MASTER);

    pub(super) fn number(self) -> c_int {
        self.0
    }
}

impl From<NodeId> for Real {
    /// As an agent tells it.
    fn from(node: NodeId) -> Real {
        Real(node.0)
    }
}

/// The real number of a node. What is below 0 is nobody's to map.
pub(super) fn real(node: c_int) -> Result<Real> {
    match current() {
        Some(map) if node >= 0 => map.get(node as usize).copied().map(Real).ok_or(BE_INVALIDNODE),
        _ => Ok(Real(node)),
    }
}

/// The number that the program knows a node by; `BPROC_NODE_NONE` when the map does not have it.
pub(super) fn known(real: c_int) -> c_int {
    match current() {
        Some(map) if real >= 0 => map.iter().position(|n| *n == real).map_or(NODE_NONE, |at| at as c_int),
        _ => real,
    }
}

fn set(map: Vec<c_int>) -> Result<()> {
    if map.iter().any(|n| *n < 0) {
        return Err(libc::EINVAL);
    }
    if current() != Some(&map) {
        MAP.store(Box::into_raw(Box::new(map)), Ordering::Release);
    }
    Ok(())
}

/// Numbers with white space between; from `#` to the end of a line nothing counts.
fn parse(text: &str) -> Option<Vec<c_int>> {
    let words = text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    words.map(|word| word.parse().ok().filter(|n| *n >= 0)).collect()
}

/// Takes the map of `$HOME/.bprocnodes` if that is there and can be read as one.
unsafe extern "C" fn bproc_init() {
    let Some(home) = std::env::var_os("HOME") else { return };
    let path = std::path::Path::new(&home).join(".bprocnodes");
    // Nothing that would keep the caller waiting.
    if !path.is_file() {
        return;
    }
    if let Some(map) = beside(|| std::fs::read_to_string(path)).ok().and_then(|text| parse(&text)) {
        // Numbers are checked by `parse`.
        let _ = set(map);
    }
}

unsafe extern "C" fn bproc_set_node_map(map: *const c_int, numnodes: c_int) -> c_int {
    done(|| {
        let len = usize::try_from(numnodes).map_err(|_| libc::EINVAL)?;
        if map.is_null() && len > 0 {
            return Err(libc::EFAULT);
        }
        // SAFETY: the caller gives an array of that many numbers.
        set((0..len).map(|i| unsafe { *map.add(i) }).collect())
    })
}

unsafe extern "C" fn bproc_clear_node_map() {
    MAP.store(std::ptr::null_mut(), Ordering::Release);
}

export!(bproc_init, bproc_set_node_map, bproc_clear_node_map);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_tells_is_not_mapped() {
        set(vec![2, 0, 1]).unwrap();
        assert_eq!([0, 1, 2].map(real), [2, 0, 1].map(|node| Ok(Real::from(NodeId(node)))));
        assert_eq!((real(3), real(NODE_MASTER)), (Err(BE_INVALIDNODE), Ok(Real::MASTER)));
        assert_eq!([0, 1, 2].map(|node| known(Real::from(NodeId(node)).number())), [1, 2, 0]);
        // SAFETY: a function of ours without arguments.
        unsafe { bproc_clear_node_map() };
    }

    #[test]
    fn maps_as_people_write_them() {
        assert_eq!(parse("3 1\n\t2 # the fast one\n# 9\n"), Some(vec![3, 1, 2]));
        assert_eq!(parse(""), Some(vec![]));
        for bad in ["1 x", "1,2", "-1", "99999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
