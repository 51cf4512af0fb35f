//! Links of documents that point into the checkout must point at something.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::sh::Cmd;

/// Looks at every Markdown file that git knows.
pub(super) fn check() -> Result<()> {
    let root = paths::root();
    let mut broken = Vec::new();
    for name in Cmd::new("git").args(["ls-files", "*.md"]).dir(&root).said()?.lines() {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        let here = Path::new(name).parent().unwrap_or(Path::new(""));
        for link in links(&text) {
            if !root.join(here).join(link).exists() {
                broken.push(format!("{name}: there is no {link}"));
            }
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("{}", broken.join("\n")) }
}

/// Targets of `[text](target)` that are files of the checkout, without their anchors; code blocks are skipped.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or("");
            let file = target.split('#').next().unwrap_or("");
            if !file.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push(file);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_files_of_the_checkout_are_links_to_check() {
        let text = "[a](docs/a.md#part) [b](https://example.org) [c](#here)\n```\n[d](none)\n```\n[e](e.md)";
        assert_eq!(super::links(text), ["docs/a.md", "e.md"]);
    }
}
