//! The command line that ps shows: PR_SET_MM_MAP points the kernel to a copy in memory
//! of ours. It must be anonymous memory; all other marks of the address space stay.

use crate::abi::MmMap;
use crate::command::{Fds, INVALID};
use crate::entry::number;
use crate::sys;

/// Longest command line; the kernel's own limit for arguments is 6 MiB.
const MAX: usize = 8 << 20;

pub(crate) struct Title {
    area: Option<&'static mut [u8]>,
}

impl Title {
    pub(crate) const fn new() -> Title {
        Title { area: None }
    }

    /// Takes the payload, or the first `size` bytes of the one descriptor, as NUL-separated arguments.
    pub(crate) fn set(&mut self, payload: &[u8], size: i64, fds: &Fds) -> sys::Result<()> {
        let len = match fds.all() {
            [] => payload.len(),
            [_] => usize::try_from(size).map_err(|_| INVALID)?,
            _ => return Err(INVALID),
        };
        if len > MAX {
            return Err(INVALID);
        }
        let mut map = current()?;
        // Without arguments ps shows the name in brackets.
        map.arg_end = map.arg_start;
        let mut area = None;
        if len > 0 {
            // One byte more: an end without NUL would make the kernel look on for a title.
            let bytes = sys::map_zeroed(len + 1)?;
            if let Err(error) = fill(&mut bytes[..len], payload, fds) {
                sys::unmap(bytes);
                return Err(error);
            }
            map.arg_start = bytes.as_ptr() as u64;
            map.arg_end = map.arg_start + if bytes[len - 1] == 0 { len } else { len + 1 } as u64;
            area = Some(bytes);
        }
        let done = sys::set_mm_map(&map);
        let unused = if done.is_ok() { core::mem::replace(&mut self.area, area) } else { area };
        if let Some(bytes) = unused {
            sys::unmap(bytes);
        }
        done
    }
}

fn fill(bytes: &mut [u8], payload: &[u8], fds: &Fds) -> sys::Result<()> {
    let [fd] = fds.all() else {
        bytes.copy_from_slice(payload);
        return Ok(());
    };
    let mut at = 0;
    while at < bytes.len() {
        match sys::read_at(*fd, &mut bytes[at..], at)? {
            0 => return Err(INVALID),
            n => at += n,
        }
    }
    Ok(())
}

/// The marks as they are: /proc/self/stat has all but the program break. The auxiliary vector and the executable are
/// named as "leave them".
fn current() -> sys::Result<MmMap> {
    let mut text = [0; 2048];
    let stat = sys::read_file(c"/proc/self/stat", &mut text)?;
    // The name, field 2, may contain anything; the last parenthesis ends it.
    let name_end = stat.iter().rposition(|b| *b == b')').ok_or(INVALID)?;
    let fields = || stat[name_end + 1..].split(|b| b.is_ascii_whitespace()).filter(|f| !f.is_empty());
    let field = |n: usize| fields().nth(n - 3).and_then(number).ok_or(INVALID);
    Ok(MmMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk: sys::program_break(),
        start_stack: field(28)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    })
}
