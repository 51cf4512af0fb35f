//! Named points of a move at which a test can stop a mover, to kill it or anybody else just there: the one that is named
//! in the file `bproc-mover.stop-at` beside the program. In release builds there are none.

/// Here is the point `name`.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    let Ok(program) = std::env::current_exe() else { return };
    let wish = program.with_extension("stop-at");
    // Whoever takes the file away stops: one mover, once.
    if std::fs::read_to_string(&wish).is_ok_and(|text| text == name) && std::fs::remove_file(&wish).is_ok() {
        let me = bproc_common::id::Pid::new(std::process::id() as i32);
        let _ = me.map(|me| bproc_sys::signal::kill(me, libc::SIGSTOP));
    }
}

/// No point.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}
