//! As much of Markdown as our documents use: fenced blocks, code spans, links, headings.
//!
//! Commands are in blocks marked `sh` (every line) and `console` (lines that start with `$ `; the rest is output), and
//! in code spans that begin with the program's name. A backslash at the end of a line continues it.

use std::{
    fs,
    path::{Path, PathBuf},
};

pub struct Line {
    /// From 1.
    pub number: usize,
    pub text: String,
    /// The mark of the fenced block that the line is in; empty for a block without one.
    pub block: Option<String>,
}

pub struct Document {
    pub path: PathBuf,
    pub lines: Vec<Line>,
}

impl Document {
    pub fn read(path: &Path) -> Document {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut block: Option<String> = None;
        let mut lines = Vec::new();
        for (number, text) in (1..).zip(text.lines()) {
            match (text.trim_start().strip_prefix("```"), &block) {
                (Some(mark), None) => block = Some(mark.trim().to_owned()),
                (Some(_), Some(_)) => block = None,
                (None, _) => lines.push(Line { number, text: text.to_owned(), block: block.clone() }),
            }
        }
        assert!(block.is_none(), "{}: a block does not end", path.display());
        Document { path: path.to_owned(), lines }
    }

    pub fn dir(&self) -> PathBuf {
        self.path.parent().expect("a file has a folder").to_owned()
    }

    pub fn name(&self) -> String {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("{}/{}", name(&self.dir()), name(&self.path))
    }

    fn prose(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.block.is_none())
    }

    /// Code spans of the prose. Spans do not cross lines here.
    pub fn spans(&self) -> impl Iterator<Item = (&Line, &str)> {
        self.prose().flat_map(|line| line.text.split('`').skip(1).step_by(2).map(move |span| (line, span)))
    }

    /// Targets of links within the repository.
    pub fn links(&self) -> Vec<(&Line, String)> {
        let mut links = Vec::new();
        for line in self.prose() {
            let without_code: String = line.text.split('`').step_by(2).collect();
            for rest in without_code.split("](").skip(1) {
                let target = rest.split(')').next().unwrap_or_default();
                if !target.contains("://") {
                    links.push((line, target.to_owned()));
                }
            }
        }
        links
    }

    /// Whether a heading has this anchor, in the way of GitHub.
    pub fn has_anchor(&self, anchor: &str) -> bool {
        self.prose().filter(|line| line.text.starts_with('#')).any(|line| {
            let title = line.text.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).eq(anchor.chars())
        })
    }

    /// Command lines of `program`, each split into words.
    pub fn commands(&self, program: &str) -> Vec<(&Line, Vec<String>)> {
        let mut found = Vec::new();
        let mut continued: Option<(&Line, String)> = None;
        for line in &self.lines {
            let text = match (line.block.as_deref(), &continued) {
                (Some("sh" | "console"), Some(_)) | (Some("sh"), None) => line.text.as_str(),
                (Some("console"), None) => line.text.strip_prefix("$ ").unwrap_or_default(),
                _ => continue,
            };
            let (start, mut whole) = continued.take().unwrap_or((line, String::new()));
            whole.push_str(text.strip_suffix('\\').unwrap_or(text));
            if text.ends_with('\\') {
                continued = Some((start, whole));
                continue;
            }
            for command in whole.split(['|', ';']).flat_map(|part| part.split("&&")) {
                found.extend(words(command, program).map(|argv| (start, argv)));
            }
        }
        let spans = self.spans().filter(|(_, span)| span.starts_with(&format!("{program} ")));
        found.extend(spans.filter_map(|(line, span)| Some((line, words(span, program)?))));
        found
    }
}

/// The words from the program's name on, without variables, `sudo`, comment and redirections; `None`: another program.
fn words(command: &str, program: &str) -> Option<Vec<String>> {
    let command = command.split(" #").next().unwrap_or_default();
    let mut words = command.split_whitespace().skip_while(|word| *word == "sudo" || word.contains('=')).peekable();
    if Path::new(words.peek()?).file_name()? != program {
        return None;
    }
    Some(words.take_while(|word| !word.starts_with(['>', '<', '&'])).map(str::to_owned).collect())
}
