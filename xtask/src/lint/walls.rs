//! Who may know whom: the direct dependencies that each crate may have. The
//! table is `walls.txt`; DESIGN's reasons stand in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::sh::Cmd;

const TABLE: &str = include_str!("walls.txt");

/// What a crate may use, or may not.
#[derive(Debug, PartialEq, Eq)]
enum Wall {
    /// These and no others.
    Only(BTreeSet<String>),
    /// Anything but these.
    Never(BTreeSet<String>),
}

type Uses = BTreeMap<String, BTreeSet<String>>;

/// Compares the workspace with the table.
pub(super) fn check() -> Result<()> {
    let said = Cmd::cargo().args(["metadata", "--format-version", "1", "--no-deps"]).said()?;
    let metadata = serde_json::from_str(&said).context("cargo metadata wrote no JSON")?;
    let breaches = breaches(&parse(TABLE)?, &uses(&metadata)?);
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("{}\nThe table is xtask/src/lint/walls.txt; a wall is moved there, with its reason", breaches.join("\n"))
}

fn parse(table: &str) -> Result<BTreeMap<String, Wall>> {
    let mut walls = BTreeMap::new();
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let [package, kind, names @ ..] = words.as_slice() else { bail!("walls.txt: cannot read `{line}`") };
        let names = names.iter().cloned().collect();
        let wall = match kind.as_str() {
            "only" => Wall::Only(names),
            "never" => Wall::Never(names),
            _ => bail!("walls.txt: `only` or `never` is wanted in `{line}`"),
        };
        walls.insert(package.clone(), wall);
    }
    Ok(walls)
}

/// Direct dependencies of every package; those of tests only are left out.
fn uses(metadata: &Value) -> Result<Uses> {
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let mut uses = Uses::new();
    for package in packages {
        let name = package["name"].as_str().context("a package has no name")?;
        let dependencies = package["dependencies"].as_array().context("a package has no list of dependencies")?;
        let names = dependencies
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str())
            .map(str::to_owned);
        uses.insert(name.to_owned(), names.collect());
    }
    Ok(uses)
}

fn breaches(walls: &BTreeMap<String, Wall>, uses: &Uses) -> Vec<String> {
    let mut told = Vec::new();
    for (package, used) in uses {
        match walls.get(package) {
            None => told.push(format!("{package} stands in no line of the table")),
            Some(Wall::Only(allowed)) => {
                told.extend(
                    used.difference(allowed)
                        .map(|name| format!("{package} may not use {name}: it may use only {}", list(allowed))),
                );
            }
            Some(Wall::Never(forbidden)) => {
                told.extend(used.intersection(forbidden).map(|name| format!("{package} may never use {name}")));
            }
        }
    }
    told
}

fn list(names: &BTreeSet<String>) -> String {
    if names.is_empty() { "core and alloc".into() } else { names.iter().cloned().collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::{Uses, breaches, parse};

    fn uses(package: &str, used: &[&str]) -> Uses {
        Uses::from([(package.to_owned(), used.iter().map(|name| (*name).to_owned()).collect())])
    }

    #[test]
    fn a_breach_is_told_in_words() {
        let walls = parse("# why\ncore only common\ncli never tonic tokio\n").expect("a good table");
        assert!(breaches(&walls, &uses("core", &["common"])).is_empty());
        assert_eq!(breaches(&walls, &uses("core", &["tokio"])), ["core may not use tokio: it may use only common"]);
        assert_eq!(breaches(&walls, &uses("cli", &["clap", "tonic"])), ["cli may never use tonic"]);
        assert_eq!(breaches(&walls, &uses("new", &[])), ["new stands in no line of the table"]);
    }

    #[test]
    fn the_table_of_the_checkout_can_be_read() {
        assert!(parse(super::TABLE).expect("a good table").contains_key("bproc-core"));
    }
}
