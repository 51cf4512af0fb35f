//! Users, groups, capabilities and mounts.

use super::{Result, call, padded};
use crate::abi::{Caps, nr};
use core::ffi::CStr;

/// True when the supplementary groups are exactly these, in any order.
pub(crate) fn has_groups(groups: impl Iterator<Item = u32>) -> bool {
    let mut own = [0u32; 256];
    // SAFETY: the array holds as many entries as are announced.
    let n = unsafe { call(nr::GETGROUPS, [own.len(), own.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    let Some(own) = n.ok().and_then(|n| own.get(..n)) else {
        return false;
    };
    let mut count = 0;
    for group in groups {
        count += 1;
        if !own.contains(&group) {
            return false;
        }
    }
    count == own.len()
}

/// Sets the supplementary groups, which are `count` numbers of 4 bytes in `groups`.
pub(crate) fn setgroups(groups: &[u8]) -> Result<()> {
    // SAFETY: the slice holds that many numbers; the kernel takes any alignment.
    unsafe { call(nr::SETGROUPS, [groups.len() / 4, groups.as_ptr() as usize, 0, 0, 0, 0]) }.map(|_| ())
}

/// Real, effective and saved gid; u32::MAX leaves one as it is.
pub(crate) fn setresgid(real: u32, effective: u32, saved: u32) -> Result<()> {
    plain!(nr::SETRESGID, real, effective, saved).map(|_| ())
}

/// Real uid.
pub(crate) fn getuid() -> u32 {
    // It cannot fail.
    plain!(nr::GETUID).map_or(u32::MAX, |uid| uid as u32)
}

/// Real, effective and saved uid; u32::MAX leaves one as it is.
pub(crate) fn setresuid(real: u32, effective: u32, saved: u32) -> Result<()> {
    plain!(nr::SETRESUID, real, effective, saved).map(|_| ())
}

/// Version 3 of the capability interface, and this process.
const CAP_HEADER: [u32; 2] = [0x2008_0522, 0];

pub(crate) fn caps() -> Result<Caps> {
    let mut data = [0u32; 6];
    // SAFETY: header and two records of three words, as version 3 wants.
    unsafe { call(nr::CAPGET, [CAP_HEADER.as_ptr() as usize, data.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    let pair = |low: usize| u64::from(data[low]) | u64::from(data[low + 3]) << 32;
    Ok(Caps { effective: pair(0), permitted: pair(1), inheritable: pair(2) })
}

pub(crate) fn set_caps(caps: Caps) -> Result<()> {
    let high = |set: u64| (set >> 32) as u32;
    let data = [
        caps.effective as u32,
        caps.permitted as u32,
        caps.inheritable as u32,
        high(caps.effective),
        high(caps.permitted),
        high(caps.inheritable),
    ];
    // SAFETY: header and two records of three words, as version 3 wants.
    unsafe { call(nr::CAPSET, [CAP_HEADER.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0, 0]) }.map(|_| ())
}

/// mount(2) without data.
pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: usize) -> Result<()> {
    // SAFETY: three NUL-terminated texts, no data.
    unsafe {
        call(nr::MOUNT, [source.as_ptr() as usize, target.as_ptr() as usize, kind.as_ptr() as usize, flags, 0, 0])
    }
    .map(|_| ())
}
