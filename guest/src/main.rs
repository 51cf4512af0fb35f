//! Init of a test VM: prepares a small Linux machine, runs the jobs that the
//! host put into the initramfs, reports on the second serial line, powers off.
//!
//! It is linked statically, so that it runs before anything else is there, and
//! it depends on nothing of BProc: it must work while BProc does not.
//!
//! The host side is `xtask/src/vm`; what the two share is text:
//!
//! - `/bproc-guest/job`: one job a line, `name TAB seconds TAB shell command`;
//! - `/bproc-guest/modules`: kernel modules in the order of loading, one path a line;
//! - `/bproc-guest/filecaps`: programs that get `cap_checkpoint_restore=ep`
//!   (a cpio archive carries no extended attributes);
//! - kernel command line: `bproc.host=NAME`, `bproc.addr=A.B.C.D/LEN`;
//! - the results: see [`report`].

mod jobs;
mod net;
mod report;
mod setup;
mod sys;

use report::Report;

/// Exit codes through `isa-debug-exit`; qemu's own status is `2 * code + 1`.
const ALL_PASSED: u8 = 0x10;
const SOME_FAILED: u8 = 0x11;

fn main() {
    // Everything below (kill(-1), power off) is meant for the init of a VM.
    if std::process::id() != 1 {
        eprintln!("bproc-guest: this is the init of a test VM, not a program to start by hand");
        std::process::exit(2);
    }
    let complaints = setup::machine();
    let mut report = Report::open();
    report.machine(&sys::kernel_release(), sys::uptime());
    for complaint in complaints {
        report.note(&complaint);
    }
    let mut passed = true;
    match jobs::read("/bproc-guest/job") {
        Ok(list) => {
            for job in &list {
                passed &= jobs::run(job, &mut report);
            }
        }
        Err(why) => {
            report.note(&why);
            passed = false;
        }
    }
    report.done(passed);
    sys::power_off(if passed { ALL_PASSED } else { SOME_FAILED })
}
