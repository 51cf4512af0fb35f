//! What a parent sees of its child, natively and through the system: the cases of the semantics test.
//!
//! A case is a function of a [`Parent`](parent::Parent), run once in each [`Mode`](parent::Mode) by a process of its
//! own (`bproc-case parent native|remote CASE`). It prints a transcript; the two must be equal.

pub mod child;
pub mod crowd;
pub mod parent;
pub mod sys;

mod family;
mod many;
mod programs;
mod signals;
mod stops;
mod waits;

use anyhow::{Context, Result};
use parent::{Mode, Parent};

/// A case.
pub type Case = fn(&mut Parent) -> Result<()>;

/// All of them.
pub fn all() -> Vec<(&'static str, Case)> {
    [signals::CASES, stops::CASES, waits::CASES, family::CASES, programs::CASES, many::CASES].concat()
}

/// Runs one case and prints its transcript; the exit status is 0 when the case came to its end.
pub fn run(mode: Mode, name: &str) -> Result<i32> {
    let (_, case) = all().into_iter().find(|(known, _)| *known == name).with_context(|| format!("no case {name}"))?;
    let mut parent = Parent::new(mode)?;
    let result = case(&mut parent);
    for line in parent.transcript() {
        println!("{line}");
    }
    if let Err(error) = result {
        println!("broken off: {error:#}");
        return Ok(1);
    }
    Ok(0)
}
