//! The tables at the end of a run: which tests passed on which kernel, what of the kernel they used there, and what
//! was not run although it counts as passed.

use std::collections::{BTreeMap, BTreeSet};

use super::results::{JobResult, Outcome};

/// Prints them all.
pub(super) fn print(outcomes: &[Outcome]) {
    for table in [results(outcomes), exercised(outcomes)] {
        println!();
        columns(&table);
    }
    list("Skipped, though counted as passed:", &skipped(outcomes));
    list("Failed tests:", &failed(outcomes));
}

/// A row for each test program, a column for each kernel.
fn results(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let mut rows = vec![heads("TEST", outcomes, |outcome| match outcome.release.as_str() {
        "" => outcome.series.clone(),
        release => release.to_owned(),
    })];
    let mut names: Vec<&str> = Vec::new();
    for job in outcomes.iter().flat_map(|outcome| &outcome.jobs) {
        if !names.contains(&job.name.as_str()) {
            names.push(&job.name);
        }
    }
    for name in names {
        rows.push(heads(name, outcomes, |outcome| {
            outcome.jobs.iter().find(|job| job.name == name).map_or("not run".to_owned(), cell)
        }));
    }
    rows.push(heads("(whole machine)", outcomes, |outcome| {
        let (boot, total) = (outcome.boot.as_secs_f64(), outcome.total.as_secs_f64());
        match &outcome.broken {
            None => format!("ok, {total:.0} s, boot {boot:.0} s"),
            Some(why) => format!("FAILED, {total:.0} s, {why}"),
        }
    }));
    rows
}

fn cell(job: &JobResult) -> String {
    let mut parts = vec![if job.passed() { "ok" } else { "FAILED" }.to_owned()];
    parts.extend(Some(job.detail()).filter(|detail| !detail.is_empty()));
    parts.push(format!("{:.0} s", job.seconds));
    if !job.left.is_empty() {
        parts.push(format!("left behind: {}", job.left.join(", ")));
    }
    parts.join(", ")
}

/// What tests said that they used of the kernel.
fn exercised(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let mut rows = vec![heads("EXERCISED", outcomes, |outcome| outcome.series.clone())];
    let all: BTreeSet<&String> = outcomes.iter().flat_map(|one| &one.exercised).collect();
    for feature in all {
        rows.push(heads(feature, outcomes, |outcome| {
            if outcome.exercised.contains(feature) { "yes" } else { "-" }.to_owned()
        }));
    }
    if rows.len() == 1 {
        rows.push(vec!["(nothing was said)".to_owned()]);
    }
    rows
}

/// Each reason once, with its number of times.
fn skipped(outcomes: &[Outcome]) -> Vec<String> {
    let mut times: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    for outcome in outcomes {
        for job in &outcome.jobs {
            for why in job.skipped() {
                *times.entry((&outcome.series, &job.name, why)).or_default() += 1;
            }
        }
    }
    let line = |((series, job, why), times): (&(&str, &str, &str), &usize)| match times {
        1 => format!("{series} {job}: {why}"),
        _ => format!("{series} {job}: {why} ({times} times)"),
    };
    times.iter().map(line).collect()
}

fn failed(outcomes: &[Outcome]) -> Vec<String> {
    let of_job = |series: &str, job: &JobResult| {
        job.failed_tests().iter().map(|test| format!("{series} {} {test}", job.name)).collect::<Vec<_>>()
    };
    let of_outcome = |outcome: &Outcome| {
        let jobs = outcome.jobs.iter().filter(|job| !job.passed());
        jobs.flat_map(|job| of_job(&outcome.series, job)).collect::<Vec<_>>()
    };
    outcomes.iter().flat_map(of_outcome).collect()
}

fn heads(first: &str, outcomes: &[Outcome], cell: impl Fn(&Outcome) -> String) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(outcomes.iter().map(cell)).collect()
}

fn list(title: &str, lines: &[String]) {
    if !lines.is_empty() {
        println!("\n{title}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
}

/// Prints rows as columns of equal width.
fn columns(rows: &[Vec<String>]) {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", line.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::Outcome;
    use super::{exercised, failed, results, skipped};

    fn outcome(series: &str, lines: &str) -> Outcome {
        let mut outcome = Outcome::of(series, std::path::Path::new("/nowhere"));
        lines.lines().for_each(|line| outcome.line(line));
        outcome
    }

    #[test]
    fn what_was_skipped_or_not_run_is_told() {
        let old = "BEGIN a\n| skipped: no go here\n| EXERCISED x\n| skipped: no go here\n\
                   | test result: ok. 3 passed; 0 failed; 0 ignored\nEND a exit:0 2.5\nDONE ok";
        let new = "BEGIN a\nEND a exit:0 1.0\nBEGIN b\n| failures:\n|     y\nEND b exit:101 3.0\nDONE failed";
        let outcomes = [outcome("6.1", old), outcome("7.2", new)];
        let table = results(&outcomes);
        assert_eq!(table[1], ["a", "ok, 3 passed, of which 2 skipped, 2 s", "ok, 1 s"]);
        assert_eq!(table[2], ["b", "not run", "FAILED, exit:101, 3 s"]);
        assert_eq!(exercised(&outcomes)[1], ["x", "yes", "-"]);
        assert_eq!(skipped(&outcomes), ["6.1 a: no go here (2 times)"]);
        assert_eq!(failed(&outcomes), ["7.2 b y"]);
    }
}
