//! The only voice of the demonstration: headings, sentences, commands with their output, checks, and the summary.

use std::{
    fmt::Display,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use super::interrupt::Interrupt;
use crate::lab::Namespace;

pub struct Narrator {
    interrupt: Interrupt,
    started: Instant,
    acts: Vec<Act>,
    failed: Vec<String>,
}

struct Act {
    title: String,
    checks: usize,
    passed: usize,
}

/// Where a command is typed.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// As its prompt says it.
    pub name: &'a str,
    pub ns: &'a Namespace,
}

impl Narrator {
    pub fn new(interrupt: Interrupt) -> Narrator {
        Narrator { interrupt, started: Instant::now(), acts: Vec::new(), failed: Vec::new() }
    }

    /// A heading.
    pub fn act(&mut self, title: &str) {
        self.acts.push(Act { title: title.to_owned(), checks: 0, passed: 0 });
        heading(&format!("{}. {title}", self.acts.len()));
    }

    pub fn say(&self, text: impl Display) {
        println!("{text}");
    }

    /// Runs a program in front of the audience and returns what it printed. Its failure is a failed check.
    ///
    /// # Errors
    /// The program cannot be started, or Ctrl-C was pressed.
    pub fn run(&mut self, place: Place<'_>, program: &str, arguments: &[&str]) -> Result<String> {
        let line = Narrator::line(program, arguments);
        self.typed(place.name, &line)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let done = place.ns.run(|| command.output()).with_context(|| format!("starting {program}"))?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        print_block(&text);
        print_block(&String::from_utf8_lossy(&done.stderr));
        if !done.status.success() {
            self.check(&format!("`{line}` works"), Err(done.status.to_string()));
        }
        Ok(text)
    }

    /// The same for a program that may fail; what it printed, the complaint included.
    ///
    /// # Errors
    /// As with [`Narrator::run`].
    pub fn attempt(&mut self, place: Place<'_>, program: &str, arguments: &[&str]) -> Result<String> {
        self.typed(place.name, &Narrator::line(program, arguments))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let done = place.ns.run(|| command.output()).with_context(|| format!("starting {program}"))?;
        let text = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        print_block(&text);
        Ok(text)
    }

    /// A command that was run by other means, with its output.
    pub fn shown(&mut self, place: &str, line: &str, output: &str) -> Result<()> {
        self.typed(place, line)?;
        print_block(output);
        Ok(())
    }

    /// A command as one would type it.
    pub fn line(program: &str, arguments: &[&str]) -> String {
        [&[program], arguments].concat().iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }

    fn typed(&self, place: &str, line: &str) -> Result<()> {
        if self.interrupt.has_come() {
            bail!("interrupted");
        }
        println!("[{place}]# {line}");
        Ok(())
    }

    /// Says that a claim holds or, with what was seen instead, that it does not.
    pub fn check(&mut self, claim: &str, outcome: Result<(), String>) {
        let passed = outcome.is_ok();
        if let Some(act) = self.acts.last_mut() {
            act.checks += 1;
            act.passed += usize::from(passed);
        }
        match outcome {
            Ok(()) => println!("    [ok] {claim}"),
            Err(seen) => {
                println!("    [FAILED] {claim}: {seen}");
                self.failed.push(claim.to_owned());
            }
        }
    }

    /// The same for a comparison.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, claim: &str, seen: &T, expected: &T) {
        let outcome = if seen == expected { Ok(()) } else { Err(format!("{seen:?} instead of {expected:?}")) };
        self.check(claim, outcome);
    }

    /// The same for a condition.
    pub fn holds(&mut self, claim: &str, holds: bool, seen: impl Display) {
        self.check(claim, if holds { Ok(()) } else { Err(seen.to_string()) });
    }

    /// What was seen, in short; false if a check failed.
    pub fn finish(&mut self) -> bool {
        heading("What was seen");
        for (number, act) in self.acts.iter().enumerate() {
            println!("{:2}. {:90} {:2} of {:2}", number + 1, act.title, act.passed, act.checks);
        }
        println!();
        for claim in &self.failed {
            println!("FAILED: {claim}");
        }
        let count = |of: fn(&Act) -> usize| self.acts.iter().map(of).sum::<usize>();
        let (passed, checks) = (count(|act| act.passed), count(|act| act.checks));
        println!("checks passed: {passed} of {checks} ({} s)", self.started.elapsed().as_secs());
        self.failed.is_empty()
    }
}

fn heading(title: &str) {
    println!("\n--- {title} {}\n", "-".repeat(100_usize.saturating_sub(title.len() + 5)));
}

fn print_block(text: &str) {
    let text = text.trim_end();
    if !text.is_empty() {
        println!("{text}");
    }
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_shown_line_can_be_typed() {
        for (word, shown) in
            [("-sS", "-sS"), ("", "''"), ("a b", "'a b'"), (r#"{"a":1}"#, r#"'{"a":1}'"#), ("it's", r"'it'\''s'")]
        {
            assert_eq!(quoted(word), shown);
        }
    }
}
