//! What the running kernel can do, found by trying: a list of features says
//! nothing about what a hypervisor, a container or lockdown refuses.

mod programs;
mod syscalls;

use std::{fmt, path::Path};

use serde::Serialize;

/// Whether BProc can run without a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// It cannot.
    Required,
    /// It can, with the consequence that the row tells.
    Better,
}

/// Outcome of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It works.
    Ok,
    /// It does not.
    Missing,
}

/// One capability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Short name.
    pub name: &'static str,
    /// Whether it is needed.
    pub need: Need,
    /// Whether it is there.
    pub state: State,
    /// What its absence means for users.
    pub consequence: &'static str,
    /// What the trial found, mostly why it failed.
    pub detail: String,
}

/// What the kernel can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// `uname -r`.
    pub kernel: String,
    /// One row for each capability.
    pub rows: Vec<Row>,
}

/// Finds out what the kernel can do.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities;

/// Name, need and consequence of a capability.
type About = (&'static str, Need, &'static str);

fn row((name, need, consequence): About, found: Result<String, String>) -> Row {
    let (state, detail) = match found {
        Ok(detail) => (State::Ok, detail),
        Err(detail) => (State::Missing, detail),
    };
    Row { name, need, state, consequence, detail }
}

impl Capabilities {
    /// Tries everything (some tenths of a second; makes short-lived processes).
    /// `object` is the eBPF object file, whose programs are loaded on trial and dropped again.
    pub fn probe(object: &Path) -> Probe {
        let kernel = syscalls::release();
        let mut rows =
            vec![row(("kernel", Need::Required, "only Linux 6.1 and later are tested"), syscalls::recent(&kernel))];
        rows.extend(programs::rows(object));
        rows.extend(syscalls::rows());
        Probe { kernel, rows }
    }
}

impl Probe {
    /// Whether everything that is required is there.
    pub fn usable(&self) -> bool {
        self.rows.iter().all(|row| row.need != Need::Required || row.state == State::Ok)
    }

    /// Whether one capability is there.
    pub fn has(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.name == name && row.state == State::Ok)
    }

    /// The table as JSON.
    pub fn json(&self) -> String {
        // Strings and plain enums always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel)?;
        for row in &self.rows {
            let need = match row.need {
                Need::Required => "required",
                Need::Better => "better",
            };
            let (state, text) = match row.state {
                State::Ok => ("ok", String::new()),
                State::Missing => ("missing", format!("{} ({})", row.consequence, row.detail)),
            };
            let line = format!("{:<16} {need:<9} {state:<8} {text}", row.name);
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
