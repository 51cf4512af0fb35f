//! A shell that is told one command after the other, as at a terminal: jobs and
//! variables of one step are there in the next.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest that one command of the tour may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What a command said, and its exit status.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) status: i32,
}

/// The shell.
pub(super) struct Session {
    shell: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    mark: String,
}

impl Session {
    /// bash with this environment in this directory. It ends with xtask, whatever ends that.
    pub(super) fn start(environment: Vec<(&'static str, String)>, dir: &Path) -> Result<Self> {
        let (reader, writer) = io::pipe().context("no pipe for the shell")?;
        let errors = writer.try_clone().context("no pipe for the shell")?;
        let mut command = Command::new("bash");
        command
            .args(["--noprofile", "--norc", "-s"])
            .envs(environment)
            .env("LC_ALL", "C")
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(writer)
            .stderr(errors);
        // SAFETY: prctl with these arguments is safe between fork and exec, and touches no memory.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut shell = command.spawn().context("cannot start bash")?;
        // The command holds the writing end: the reader must see the end when the shell closes it.
        drop(command);
        let input = shell.stdin.take().context("bash has no standard input")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mark = format!("--done-{}--", std::process::id());
        Ok(Self { shell, input, lines, mark })
    }

    /// Prints a command as typed, runs it, prints what it says.
    pub(super) fn show(&mut self, command: &str) -> Result<Said> {
        println!("\n$ {command}");
        let said = self.quiet(command)?;
        print!("{}", said.text);
        Ok(said)
    }

    /// Runs a command without printing anything.
    pub(super) fn quiet(&mut self, command: &str) -> Result<Said> {
        // Standard input is where the shell reads its commands from: a program must not.
        writeln!(self.input, "{{ {command}\n}} </dev/null; echo \"{} $?\"", self.mark)
            .and_then(|()| self.input.flush())
            .context("the shell is gone")?;
        let end = Instant::now() + LIMIT;
        let mut text = String::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.split_once(&self.mark) {
                    // What came before on the same line had no line end of its own.
                    Some((before, status)) => {
                        text.push_str(before);
                        let status = status.trim().parse().context("the shell's status is no number")?;
                        return Ok(Said { text, status });
                    }
                    None => {
                        text.push_str(&line);
                        text.push('\n');
                    }
                },
                Err(RecvTimeoutError::Timeout) => {
                    bail!("`{command}` is not done after {} s; it said:\n{text}", LIMIT.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the shell ended in `{command}`; it said:\n{text}")
                }
            }
        }
    }

    /// Ends the shell and waits for it.
    pub(super) fn end(self) -> Result<()> {
        let Self { mut shell, input, .. } = self;
        drop(input);
        shell.wait().context("the shell cannot be waited for").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::Session;

    #[test]
    fn jobs_and_status_of_one_step_are_there_in_the_next() {
        let mut session = Session::start(Vec::new(), &std::env::temp_dir()).expect("bash starts");
        assert_eq!(session.quiet("printf abc; (exit 7)").expect("it ends").status, 7);
        let said = session.quiet("cat; echo no line end >&2; printf abc").expect("it ends");
        assert_eq!((said.text.as_str(), said.status), ("no line end\nabc", 0));
        session.quiet("(exit 5) & job=$!").expect("it ends");
        assert_eq!(session.quiet("wait $job").expect("it ends").status, 5);
        session.end().expect("it ends with its input");
    }
}
