//! Tables for people, JSON lines for programs.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::Setup;
use crate::measure::Samples;
use crate::procfs;

/// What came of one benchmark.
pub struct Report {
    name: &'static str,
    unit: &'static str,
    rows: Vec<Row>,
    notes: Vec<String>,
    load: f64,
}

struct Row {
    case: String,
    samples: Samples,
}

impl Report {
    /// An empty one; the load of the machine is taken now. The first row is what the others are compared with.
    pub fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, rows: Vec::new(), notes: Vec::new(), load: procfs::load() }
    }

    /// A case with its samples.
    pub fn row(&mut self, case: impl Into<String>, samples: Samples) {
        self.rows.push(Row { case: case.into(), samples });
    }

    /// A case of which there is one figure.
    pub fn figure(&mut self, case: impl Into<String>, value: f64) {
        self.row(case, Samples::from_iter([value]));
    }

    /// A sentence below the table.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Prints the table and adds the lines to `NAME.json`.
    pub fn finish(self, setup: &Setup) -> Result<()> {
        let base = self.rows.first().map_or(f64::NAN, |row| row.samples.median());
        let width = self.rows.iter().map(|row| row.case.chars().count()).max().unwrap_or(0);
        println!("\n{} ({}; load average at start {:.1})", self.name, self.unit, self.load);
        println!("  {:width$}  {:>7} {:>12} {:>12} {:>12} {:>8}", "", "runs", "median", "p90", "p99", "ratio");
        let mut lines = String::new();
        for Row { case, samples } in &self.rows {
            let [median, p90, p99] = [0.5, 0.9, 0.99].map(|part| samples.quantile(part));
            let ratio = median / base;
            println!(
                "  {case:width$}  {:>7} {:>12} {:>12} {:>12} {:>8}",
                samples.len(),
                rounded(median),
                rounded(p90),
                rounded(p99),
                format!("{ratio:.2}x")
            );
            let line: Value = json!({
                "bench": self.name, "case": case, "unit": self.unit, "runs": samples.len(),
                "median": median, "p90": p90, "p99": p99, "ratio": ratio, "load": self.load,
            });
            lines.push_str(&format!("{line}\n"));
        }
        for note in &self.notes {
            println!("  {note}");
            lines.push_str(&format!("{}\n", json!({ "bench": self.name, "note": note })));
        }
        fs::create_dir_all(&setup.out).with_context(|| format!("cannot make {}", setup.out.display()))?;
        let file = setup.out.join(format!("{}.json", self.name));
        fs::write(&file, lines).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// With as many digits as mean something.
fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}
