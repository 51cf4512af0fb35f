//! Node sets: arrays of nodes that grow, in C's own memory (malloc), so that C may free them.

use bproc_common::errno::BE_INVALIDNODE;
use bproc_common::id::NodeId;
use bproc_common::nodeset::{self, Unknown};
use bproc_common::perm::Access;
use libc::{c_char, c_int};

use super::abi::{NODE_MASTER, NodeInfo, NodeSet};
use super::{Result, answer, done, export, nodes, text, told};

/// Sets grow in steps of this many nodes.
const STEP: usize = 128;

/// # Safety
/// `set` is null or a set that the calls here made, or `BPROC_EMPTY_NODESET`.
unsafe fn grow(set: *mut NodeSet, size: usize) -> Result<&'static mut NodeSet> {
    // SAFETY: as the caller promises. It has the set for itself while the call lasts.
    let set = unsafe { set.as_mut() }.ok_or(libc::EFAULT)?;
    if usize::try_from(set.alloc).unwrap_or(0) >= size {
        return Ok(set);
    }
    let room = size.next_multiple_of(STEP);
    let alloc = c_int::try_from(room).map_err(|_| libc::ENOMEM)?;
    // SAFETY: `node` is null or came from malloc; the old nodes are copied along.
    let node = unsafe { libc::realloc(set.node.cast(), room * size_of::<NodeInfo>()) };
    if node.is_null() {
        return Err(libc::ENOMEM);
    }
    set.node = node.cast();
    set.alloc = alloc;
    Ok(set)
}

/// The nodes of a set.
///
/// # Safety
/// As [`grow`].
unsafe fn members(set: *const NodeSet) -> Result<Vec<NodeInfo>> {
    // SAFETY: as the caller promises.
    let set = unsafe { set.as_ref() }.ok_or(libc::EFAULT)?;
    let size = usize::try_from(set.size).map_err(|_| libc::EINVAL)?;
    if size == 0 {
        return Ok(Vec::new());
    }
    if set.node.is_null() {
        return Err(libc::EINVAL);
    }
    // SAFETY: a set holds `size` nodes.
    Ok(unsafe { std::slice::from_raw_parts(set.node, size) }.to_vec())
}

/// # Safety
/// As [`grow`].
unsafe fn add(set: *mut NodeSet, more: &[NodeInfo]) -> Result<c_int> {
    // SAFETY: as the caller promises; room is made before it is written to.
    unsafe {
        let size = usize::try_from(set.as_ref().ok_or(libc::EFAULT)?.size).map_err(|_| libc::EINVAL)?;
        let set = grow(set, size + more.len())?;
        if !more.is_empty() {
            set.node.add(size).copy_from_nonoverlapping(more.as_ptr(), more.len());
        }
        set.size = c_int::try_from(size + more.len()).map_err(|_| libc::ENOMEM)?;
        Ok(set.size)
    }
}

/// Puts these nodes in the place of what is in the set.
///
/// # Safety
/// As [`grow`].
unsafe fn replace(set: *mut NodeSet, with: &[NodeInfo]) -> Result<c_int> {
    // SAFETY: as the caller promises.
    unsafe {
        grow(set, with.len())?.size = 0;
        add(set, with)
    }
}

unsafe extern "C" fn bproc_nodeset_init(set: *mut NodeSet, size: c_int) -> c_int {
    done(|| {
        let size = usize::try_from(size).map_err(|_| libc::EINVAL)?;
        if set.is_null() {
            return Err(libc::EFAULT);
        }
        // SAFETY: the caller gives a struct, with whatever in it.
        unsafe {
            set.write(NodeSet { size: 0, alloc: 0, node: std::ptr::null_mut() });
            grow(set, size).map(drop)
        }
    })
}

unsafe extern "C" fn bproc_nodeset_grow(set: *mut NodeSet, size: c_int) -> c_int {
    // SAFETY: as the caller promises.
    done(|| usize::try_from(size).map_err(|_| libc::EINVAL).and_then(|size| unsafe { grow(set, size) }.map(drop)))
}

unsafe extern "C" fn bproc_nodeset_free(set: *mut NodeSet) {
    // SAFETY: null, or a set whose memory came from malloc.
    unsafe {
        if let Some(set) = set.as_mut() {
            libc::free(set.node.cast());
            *set = NodeSet { size: 0, alloc: 0, node: std::ptr::null_mut() };
        }
    }
}

unsafe extern "C" fn bproc_nodeset_add(set: *mut NodeSet, node: *const NodeInfo) -> c_int {
    done(|| {
        // Copied first: it may lie in the set itself, which may move.
        // SAFETY: as the caller promises.
        let node = unsafe { node.as_ref() }.copied().ok_or(libc::EFAULT)?;
        // SAFETY: as above.
        unsafe { add(set, &[node]) }.map(drop)
    })
}

unsafe extern "C" fn bproc_nodeset_append(set: *mut NodeSet, more: *const NodeSet) -> c_int {
    // SAFETY: as the caller promises.
    done(|| unsafe { members(more) }.and_then(|more| unsafe { add(set, &more) }.map(drop)))
}

fn infos() -> Result<Vec<NodeInfo>> {
    Ok(nodes::all()?.iter().map(nodes::info).collect())
}

unsafe extern "C" fn bproc_nodelist(set: *mut NodeSet) -> c_int {
    // SAFETY: as the caller promises.
    answer(|| infos().and_then(|list| unsafe { replace(set, &list) }))
}

/// Takes the changes that `fd` (a notifier) tells of, so that it polls readable at the next one, then lists.
unsafe extern "C" fn bproc_nodelist_(set: *mut NodeSet, fd: c_int) -> c_int {
    let mut packet = [0u8; 64];
    loop {
        // SAFETY: `packet` has the size that is told.
        match unsafe { libc::recv(fd, packet.as_mut_ptr().cast(), packet.len(), libc::MSG_DONTWAIT) } {
            0 => return told(Err(libc::ENOSYS)),
            n if n > 0 => {}
            _ if super::errno() == libc::EINTR => {}
            _ if super::errno() == libc::EAGAIN => break,
            _ => return told(Err(super::errno())),
        }
    }
    // SAFETY: as the caller promises.
    unsafe { bproc_nodelist(set) }
}

fn state_of(node: &NodeInfo) -> String {
    let bytes = node.status.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8(bytes).unwrap_or_default()
}

/// Those of `from` that the text names, in its order. EINVAL: it is no node set; `BE_INVALIDNODE`: a number that is
/// not in `from`. A word that fits no node selects none.
fn select(from: &[NodeInfo], text: &str) -> Result<Vec<NodeInfo>> {
    let items = nodeset::parse(text).map_err(|_| libc::EINVAL)?;
    let states: Vec<_> = from.iter().map(|node| (node.node, state_of(node))).collect();
    let known: Vec<_> = states.iter().map(|(number, state)| (NodeId(*number), state.as_str())).collect();
    let selection = nodeset::resolve(&items, &known);
    if selection.unknown.iter().any(|unknown| matches!(unknown, Unknown::Nodes(..))) {
        return Err(BE_INVALIDNODE);
    }
    let find = |id: &NodeId| from.iter().find(|node| node.node == id.0).copied().ok_or(BE_INVALIDNODE);
    selection.nodes.iter().map(find).collect()
}

unsafe extern "C" fn bproc_nodefilter(out: *mut NodeSet, from: *const NodeSet, filter: *const c_char) -> c_int {
    // SAFETY: as the caller promises.
    done(|| unsafe {
        members(from)
            .and_then(|from| select(&from, &text::string(filter)?))
            .and_then(|found| replace(out, &found).map(drop))
    })
}

unsafe extern "C" fn bproc_nodespec(out: *mut NodeSet, spec: *const c_char) -> c_int {
    done(|| {
        // SAFETY: as the caller promises.
        let spec = unsafe { text::string(spec) }?;
        let mut all = infos()?;
        if nodeset::parse(&spec).is_ok_and(|items| items.contains(&nodeset::Item::Master)) {
            all.push(nodes::info(&nodes::master()?));
        }
        let found = select(&all, &spec)?;
        // SAFETY: as the caller promises.
        unsafe { replace(out, &found) }.map(drop)
    })
}

unsafe extern "C" fn bproc_nodefilteraccessible(list: *mut NodeInfo, size: *mut c_int) -> c_int {
    done(|| {
        // SAFETY: null, or the caller's number.
        let size = unsafe { size.as_mut() }.ok_or(libc::EFAULT)?;
        let len = usize::try_from(*size).map_err(|_| libc::EINVAL)?;
        if list.is_null() && len > 0 {
            return Err(libc::EFAULT);
        }
        let mut kept = 0;
        for i in 0..len {
            // SAFETY: the caller gives that many nodes; `kept` is never ahead of `i`.
            unsafe {
                let node = *list.add(i);
                let access = Access { mode: node.mode, user: node.user, group: node.group };
                if node.node == NODE_MASTER || (state_of(&node) == "up" && nodes::accessible(&access)) {
                    *list.add(kept) = node;
                    kept += 1;
                }
            }
        }
        *size = kept as c_int;
        Ok(())
    })
}

export!(
    bproc_nodeset_init,
    bproc_nodeset_grow,
    bproc_nodeset_free,
    bproc_nodeset_add,
    bproc_nodeset_append,
    bproc_nodelist,
    bproc_nodelist_,
    bproc_nodefilter,
    bproc_nodespec,
    bproc_nodefilteraccessible,
);
