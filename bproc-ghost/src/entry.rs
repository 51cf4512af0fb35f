//! From the kernel's first instruction to the loop: blocks signals before anything else,
//! gives up what was inherited and reads the environment.

use crate::abi::{Action, Prctl, sig};
use crate::ghost::{Ghost, Start};
use crate::{command, sys};
use bproc_common::ghost::{ENV_COUNT, ENV_LEASE, ENV_NAME, ENV_PDEATH, ENV_ROLE, ENV_SOCKET, ENV_STARTER, Role};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};

/// Exit code of a ghost whose environment is no good.
const EXIT_USAGE: i32 = 64;
/// Exit code of an init that could not mount its /proc.
const EXIT_MOUNT: i32 = 71;

core::arch::global_asm!(
    ".globl _start",
    "_start: xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

/// Everything that the ghost keeps, in memory that costs nothing until it is touched.
struct Static(UnsafeCell<(Ghost, command::Inbox)>);
// SAFETY: the program has one thread.
unsafe impl Sync for Static {}
static STATE: Static = Static(UnsafeCell::new((Ghost::new(), command::Inbox::new())));

extern "C" fn main(stack: *const usize) -> ! {
    sys::set_mask(u64::MAX);
    sys::close_all();
    let _ = sys::prctl(Prctl::SetDumpable, 0, 0);
    let _ = sys::chdir(c"/");
    keep_zombies();
    // SAFETY: called once, by _start, with the stack as the kernel made it.
    let environment = unsafe { environment(stack) };
    let Some(start) = read_environment(environment) else { sys::exit(EXIT_USAGE) };
    if start.role == Role::Init {
        prepare_init();
    }
    // SAFETY: main runs once, so this is the only reference.
    let (ghost, inbox) = unsafe { &mut *STATE.0.get() };
    match ghost.start(&start) {
        Ok(()) => ghost.run(inbox),
        Err(error) => sys::exit(error.0),
    }
}

/// Makes children wait as zombies even if the program before ignored SIGCHLD. A handler rather than the default,
/// because setting the default would drop a SIGCHLD that is pending.
fn keep_zombies() {
    if let Ok((action, vanish)) = sys::action(sig::CHLD)
        && (action == Action::Ignore || vanish)
    {
        let _ = sys::set_action(sig::CHLD, Action::Handler);
    }
}

/// The entries of the environment, which stay where they are for ever.
///
/// # Safety
/// `stack` is what the kernel passed to the program: argc, argv, 0, envp, 0.
unsafe fn environment(stack: *const usize) -> impl Iterator<Item = &'static [u8]> {
    // SAFETY: argc stands here by the ABI, and the table of the environment follows that of the arguments.
    let mut at = unsafe { stack.add(*stack + 2) };
    core::iter::from_fn(move || {
        // SAFETY: the table ends with a null, which is not passed.
        let text = unsafe { *at } as *const c_char;
        if text.is_null() {
            return None;
        }
        // SAFETY: not at the end yet; the entry is NUL-terminated.
        unsafe {
            at = at.add(1);
            Some(CStr::from_ptr(text).to_bytes())
        }
    })
}

fn read_environment(entries: impl Iterator<Item = &'static [u8]>) -> Option<Start> {
    let mut socket = None;
    let mut role = Role::Ghost;
    let mut lease_s = 0;
    let mut count = 0;
    let mut starter = 0;
    // What the process that was here had asked for comes to it where it is: this one would pass it on a second time.
    let _ = sys::prctl(Prctl::SetParentDeathSignal, 0, 0);
    for entry in entries {
        if let Some(path) = value(entry, ENV_SOCKET) {
            socket = Some(path).filter(|p| (1..=sys::SOCKET_PATH).contains(&p.len()));
        } else if let Some(name) = value(entry, ENV_NAME) {
            be_called(name);
        } else if let Some(text) = value(entry, ENV_ROLE) {
            role = role_of(text)?;
        } else if let Some(text) = value(entry, ENV_LEASE) {
            lease_s = u32::try_from(number(text)?).ok()?;
        } else if let Some(text) = value(entry, ENV_COUNT) {
            count = u32::try_from(number(text)?).ok()?;
        } else if let Some(text) = value(entry, ENV_STARTER) {
            starter = number(text)?;
        } else if let Some(text) = value(entry, ENV_PDEATH) {
            die_with(i32::try_from(number(text)?).ok()?);
        }
    }
    Some(Start { socket: socket?, role, lease_s, count, starter })
}

fn value(entry: &'static [u8], name: &str) -> Option<&'static [u8]> {
    entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// The role of a decimal digit.
pub(crate) fn role_of(text: &[u8]) -> Option<Role> {
    [Role::Ghost, Role::Skeleton, Role::Init].into_iter().find(|role| text == [b'0' + *role as i64 as u8])
}

/// A decimal number without sign.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// The name that ps shows as comm.
fn be_called(name: &[u8]) {
    let mut text = [0; 16];
    let len = name.len().min(15);
    text[..len].copy_from_slice(&name[..len]);
    let _ = sys::set_name(&text);
}

/// From now on ends with its parent; at once, if the parent is another one already.
fn die_with(parent: i32) {
    let _ = sys::prctl(Prctl::SetParentDeathSignal, sig::KILL as usize, 0);
    if sys::getppid() != parent {
        sys::raise(sig::KILL);
    }
}

/// Gives the first process of a space a /proc that shows the space.
///
/// The slave agent starts it in a mount namespace of its own. Anywhere else than as pid 1 this would turn the
/// machine's own mounts upside down, hence the check.
fn prepare_init() {
    const MS_REC_PRIVATE: usize = 0x4000 | 0x4_0000;
    const MS_NOSUID_NODEV_NOEXEC: usize = 2 | 4 | 8;
    if sys::getpid() != 1 {
        sys::exit(EXIT_USAGE);
    }
    if sys::mount(c"none", c"/", c"none", MS_REC_PRIVATE).is_err()
        || sys::mount(c"proc", c"/proc", c"proc", MS_NOSUID_NODEV_NOEXEC).is_err()
    {
        sys::exit(EXIT_MOUNT);
    }
}
