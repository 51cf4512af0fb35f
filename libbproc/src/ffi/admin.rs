//! Changes of nodes, the library list, errors and version.

use std::net::{IpAddr, SocketAddr};

use bproc_common::errno as be;
use bproc_proto::client::change_libraries::How;
use libc::{c_char, c_int, c_uint, c_void, sockaddr};

use super::abi::{ADDR_XATTR, ARCH, NODE_MASTER, STATE_XATTR, Version, XATTR_MAX_NAME, XATTR_MAX_VALUE, XATTR_PREFIX};
use super::{Number, Result, answer, done, export, nodes, text, told};
use crate::{Client, SetNode};

/// What `bproc_version` tells: the interface, then the package.
const VERSION: &str = concat!("4.0 (", env!("CARGO_PKG_VERSION"), ")");
/// Number of the interface, as `BPROC_API_VERSION`.
const API_VERSION: u32 = 4;

fn change(node: c_int, fill: impl FnOnce(&mut SetNode)) -> Result<()> {
    if node == NODE_MASTER {
        return Err(libc::EINVAL);
    }
    let mut change = SetNode { number: nodes::target(node)?.number(), ..SetNode::default() };
    fill(&mut change);
    Ok(Client::connect()?.set_node(change)?)
}

unsafe extern "C" fn bproc_chmod(node: c_int, mode: c_int) -> c_int {
    done(|| change(node, |node| node.mode = Some(mode as c_uint & 0o111)))
}

unsafe extern "C" fn bproc_chown(node: c_int, user: c_int) -> c_int {
    done(|| change(node, |node| node.user = wanted(user)))
}

unsafe extern "C" fn bproc_chgrp(node: c_int, group: c_int) -> c_int {
    done(|| change(node, |node| node.group = wanted(group)))
}

/// As for chown(2), -1 stands for what it is.
fn wanted(id: c_int) -> Option<c_uint> {
    (id != -1).then_some(id as c_uint)
}

fn set_status(node: c_int, state: String) -> Result<()> {
    change(node, |node| node.state = Some(state))
}

unsafe extern "C" fn bproc_nodesetstatus(node: c_int, state: *const c_char) -> c_int {
    // SAFETY: the caller gives a string.
    done(|| unsafe { text::string(state) }.and_then(|state| set_status(node, state)))
}

/// EINVAL for a name that no attribute can have.
pub(super) fn attribute_name(name: &[u8]) -> Result<()> {
    let fits = name.len() <= XATTR_MAX_NAME && name.len() > XATTR_PREFIX.len() && name.starts_with(XATTR_PREFIX);
    if fits { Ok(()) } else { Err(libc::EINVAL) }
}

fn set_attribute(node: c_int, name: Vec<u8>, value: Vec<u8>) -> Result<()> {
    attribute_name(&name)?;
    if node == NODE_MASTER {
        return Err(libc::EINVAL);
    }
    if value.len() > XATTR_MAX_VALUE {
        return Err(libc::E2BIG);
    }
    match name.as_slice() {
        ADDR_XATTR => Err(libc::EPERM),
        STATE_XATTR => {
            let text = value.strip_suffix(&[0]).unwrap_or(&value);
            set_status(node, String::from_utf8(text.to_vec()).map_err(|_| libc::EINVAL)?)
        }
        _ => {
            let name = String::from_utf8(name).map_err(|_| libc::EINVAL)?;
            Ok(Client::connect()?.set_attribute(nodes::target(node)?.number(), name, Some(value))?)
        }
    }
}

unsafe extern "C" fn bproc_setnodeattr(node: c_int, name: *const c_char, value: *const c_void, size: c_int) -> c_int {
    done(|| {
        // SAFETY: the caller gives a string.
        let name = unsafe { text::bytes(name) }?;
        let size = usize::try_from(size).map_err(|_| libc::EINVAL)?;
        if value.is_null() && size > 0 {
            return Err(libc::EFAULT);
        }
        // SAFETY: the caller gives `size` bytes.
        let value = (0..size).map(|i| unsafe { *value.cast::<u8>().add(i) }).collect();
        set_attribute(node, name, value)
    })
}

fn power(node: c_int, what: &str, wait: bool) -> c_int {
    let end = || match node {
        NODE_MASTER => Err(libc::EINVAL),
        node => Ok(Client::connect()?.power(nodes::target(node)?.number(), what.to_owned(), wait)?),
    };
    done(end)
}

macro_rules! powers {
    ($($name:ident: $what:literal, $wait:literal;)*) => {
        $(unsafe extern "C" fn $name(node: c_int) -> c_int { power(node, $what, $wait) })*
        export!($($name),*);
    };
}

powers! {
    bproc_nodereboot: "reboot", true;
    bproc_nodehalt: "halt", true;
    bproc_nodepwroff: "pwroff", true;
    bproc_nodereboot_async: "reboot", false;
    bproc_nodehalt_async: "halt", false;
    bproc_nodepwroff_async: "pwroff", false;
}

unsafe extern "C" fn bproc_nodechroot(node: c_int, path: *const c_char) -> c_int {
    done(|| {
        // SAFETY: the caller gives a string.
        let path = unsafe { text::bytes(path) }?;
        Ok(Client::connect()?.chroot(nodes::target(node)?.number(), path)?)
    })
}

/// Address and port as text.
///
/// # Safety
/// `addr` is null or points to `len` bytes.
unsafe fn endpoint(addr: *const sockaddr, len: c_int) -> Result<String> {
    // SAFETY: as the caller promises. The port lies at the same place in both families.
    unsafe {
        let ip: IpAddr = nodes::ip(addr, usize::try_from(len).unwrap_or(0))?;
        let port = u16::from_be((&raw const (*addr.cast::<libc::sockaddr_in>()).sin_port).read_unaligned());
        Ok(SocketAddr::new(ip, port).to_string())
    }
}

unsafe extern "C" fn bproc_nodereconnect(
    node: c_int,
    remote: *const sockaddr,
    remote_size: c_int,
    local: *const sockaddr,
    local_size: c_int,
) -> c_int {
    done(|| {
        // SAFETY: the caller gives that many bytes of each.
        let remote = unsafe { endpoint(remote, remote_size) }?;
        // SAFETY: as above.
        let local = if local.is_null() { String::new() } else { unsafe { endpoint(local, local_size) }? };
        Ok(Client::connect()?.reconnect(nodes::target(node)?.number(), remote, local)?)
    })
}

fn libraries(how: How, path: Vec<u8>) -> c_int {
    done(|| Client::connect().and_then(|mut client| client.change_libraries(how, path)).map(drop).map_err(Number::from))
}

unsafe extern "C" fn bproc_libclear() -> c_int {
    libraries(How::Clear, Vec::new())
}

unsafe extern "C" fn bproc_libadd(path: *const c_char) -> c_int {
    // SAFETY: the caller gives a string.
    unsafe { text::bytes(path) }.map_or_else(|number| told(Err(number)), |path| libraries(How::Add, path))
}

unsafe extern "C" fn bproc_libdel(path: *const c_char) -> c_int {
    // SAFETY: the caller gives a string.
    unsafe { text::bytes(path) }.map_or_else(|number| told(Err(number)), |path| libraries(How::Delete, path))
}

unsafe extern "C" fn bproc_liblist(list: *mut *mut c_char) -> c_int {
    answer(|| {
        if list.is_null() {
            return Err(libc::EFAULT);
        }
        let mut text = Vec::new();
        for path in Client::connect()?.libraries()? {
            text.extend(path);
            text.push(0);
        }
        text.push(0);
        // SAFETY: what malloc gives has room for the text; the caller frees it.
        unsafe {
            let memory = libc::malloc(text.len()).cast::<u8>();
            if memory.is_null() {
                return Err(libc::ENOMEM);
            }
            memory.copy_from_nonoverlapping(text.as_ptr(), text.len());
            *list = memory.cast();
        }
        c_int::try_from(text.len()).map_err(|_| libc::EOVERFLOW)
    })
}

unsafe extern "C" fn bproc_strerror(number: c_int) -> *const c_char {
    let number = number.saturating_abs();
    let words = match number {
        be::BE_INVALIDNODE => c"Invalid node number",
        be::BE_NODEDOWN => c"Node is down",
        be::BE_SAMENODE => c"Process is on that node already",
        be::BE_SLAVEDIED => c"Node died during the operation",
        be::BE_INVALIDPROC => c"No such process in the space",
        // SAFETY: takes any number; the text is libc's, and stays until this thread asks again.
        number => return unsafe { libc::strerror(number) },
    };
    words.as_ptr()
}

unsafe extern "C" fn bproc_version(to: *mut Version) -> c_int {
    done(|| {
        // SAFETY: null, or the caller's struct.
        let to = unsafe { to.as_mut() }.ok_or(libc::EFAULT)?;
        to.bproc_magic = b"BPr".map(|b| b as c_char);
        to.arch = ARCH;
        to.magic = API_VERSION;
        to.version_string = text::field(VERSION.as_bytes());
        Ok(())
    })
}

export!(
    bproc_chmod,
    bproc_chown,
    bproc_chgrp,
    bproc_nodesetstatus,
    bproc_setnodeattr,
    bproc_nodechroot,
    bproc_nodereconnect,
    bproc_libclear,
    bproc_libadd,
    bproc_libdel,
    bproc_liblist,
    bproc_strerror,
    bproc_version,
);
