//! What becomes of a body of which nothing comes: what it was, with its own limits.

use super::target::{Target, maps_of};
use crate::capture::gate;
use crate::error::Error;
use crate::inject::Program;
use crate::limits::{self, Lifted};
use crate::tracee::Tracee;

/// [`RestoreOptions::fallback`], kept.
pub(super) struct Fallback {
    path: Vec<u8>,
    argv: Vec<Vec<u8>>,
    envp: Vec<Vec<u8>>,
}

impl Fallback {
    pub(super) fn of(program: &Program<'_>) -> Fallback {
        let kept = |texts: &[&[u8]]| texts.iter().map(|text| text.to_vec()).collect();
        Fallback { path: program.path.to_vec(), argv: kept(program.argv), envp: kept(program.envp) }
    }
}

impl Target {
    /// An untouched body has its own limits again.
    pub(super) fn put_limits_back(&mut self) -> bool {
        if let Some(lifted) = self.lifted.take() {
            lifted.put_back(&mut self.threads[0], self.gate, &self.memory);
        }
        true
    }

    /// Makes the half-built process what the restorer wants in its place; it runs on as that.
    pub(super) fn fall_back(&mut self) -> Result<(), Error> {
        let Some(fallback) = self.fallback.take() else { return Err(Error::Gone(self.pid)) };
        let argv: Vec<&[u8]> = fallback.argv.iter().map(Vec::as_slice).collect();
        let envp: Vec<&[u8]> = fallback.envp.iter().map(Vec::as_slice).collect();
        let others: Vec<i32> = self.threads.iter().skip(1).map(Tracee::tid).collect();
        let program = Program { path: &fallback.path, argv: &argv, envp: &envp };
        // It may have those of the image already, and some only it can set itself.
        let mut former = self.lifted;
        if let (Ok(place), Some(leader)) = (gate(&maps_of(self.pid)?, &self.memory, self.pid), self.threads.first_mut())
        {
            if let Some(own) = self.lifted {
                own.put_back(leader, place, &self.memory);
            }
            let lifted = Lifted::for_exec(leader, place, &self.memory, program.text())?;
            former = former.or(Some(lifted));
        }
        self.execute(&program, &others)?;
        if let Some(own) = former {
            limits::set(self.pid, &limits::of_stand_in(own.own(), program.text()));
        }
        Ok(())
    }
}
