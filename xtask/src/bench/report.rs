//! Measurements as text: read from a bench's output, written as Markdown and SVG.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, ensure};

use crate::vm::Kernel;

/// What a bench prints, separated by tabs: `measure`, group, case, unit, value.
pub struct Measurement {
    pub group: String,
    pub case: String,
    pub unit: String,
    pub value: f64,
}

impl Measurement {
    /// None for a line that is none; an error for one that only looks like one.
    fn parse(line: &str) -> Result<Option<Measurement>> {
        let Some(rest) = line.strip_prefix("measure\t") else { return Ok(None) };
        let words: Vec<&str> = rest.split('\t').collect();
        let [group, case, unit, value] = words[..] else { anyhow::bail!("not group, case, unit, value: {line:?}") };
        let value: f64 = value.trim().parse().with_context(|| format!("not a number: {line:?}"))?;
        ensure!(value.is_finite() && value >= 0.0, "not a measurement: {line:?}");
        Ok(Some(Measurement { group: group.into(), case: case.into(), unit: unit.into(), value }))
    }
}

/// All values of each case, in the order in which cases were first seen.
pub struct Report {
    kernel: Kernel,
    groups: Vec<Group>,
}

struct Group {
    name: String,
    unit: String,
    cases: Vec<(String, Vec<f64>)>,
}

impl Report {
    pub fn new(kernel: Kernel) -> Report {
        Report { kernel, groups: Vec::new() }
    }

    /// Takes the measurements out of a bench's output; returns how many there were.
    pub fn add(&mut self, output: &str) -> Result<usize> {
        let mut found = 0;
        for line in output.lines() {
            let Some(measurement) = Measurement::parse(line)? else { continue };
            found += 1;
            let at = self.groups.iter().position(|group| group.name == measurement.group).unwrap_or_else(|| {
                let Measurement { group, unit, .. } = &measurement;
                self.groups.push(Group { name: group.clone(), unit: unit.clone(), cases: Vec::new() });
                self.groups.len() - 1
            });
            let group = &mut self.groups[at];
            ensure!(group.unit == measurement.unit, "{}: in {} and in {}", group.name, group.unit, measurement.unit);
            match group.cases.iter_mut().find(|(case, _)| *case == measurement.case) {
                Some((_, values)) => values.push(measurement.value),
                None => group.cases.push((measurement.case, vec![measurement.value])),
            }
        }
        Ok(found)
    }

    pub fn markdown(&self, name: &str) -> String {
        let mut text = format!(
            "# {name}\n\nKernel {}, one emulated CPU, clock = executed instructions. Median (least to greatest) of all \
             runs.\n",
            self.kernel
        );
        for group in &self.groups {
            let _ = write!(text, "\n## {}\n\n| case | {} | least | greatest | runs |\n", group.name, group.unit);
            text += "|---|---|---|---|---|\n";
            for (case, values) in &group.cases {
                let Spread { least, median, greatest } = Spread::of(values);
                let (least, median, greatest) = (number(least), number(median), number(greatest));
                let _ = writeln!(text, "| {case} | {median} | {least} | {greatest} | {} |", values.len());
            }
        }
        text
    }

    /// Horizontal bars, one scale for each group.
    pub fn svg(&self, name: &str) -> String {
        const WIDTH: usize = 860;
        const LABELS: usize = 320;
        const ROW: usize = 24;
        let mut body = String::new();
        let mut y = 40;
        for group in &self.groups {
            let _ = writeln!(body, "<text x=\"10\" y=\"{y}\" class=\"group\">{}</text>", escape(&group.name));
            y += ROW;
            let medians: BTreeMap<&str, f64> =
                group.cases.iter().map(|(case, values)| (case.as_str(), Spread::of(values).median)).collect();
            let most = medians.values().copied().fold(f64::MIN_POSITIVE, f64::max);
            for (case, _) in &group.cases {
                let median = medians[case.as_str()];
                let bar = median / most * (WIDTH - LABELS - 130) as f64;
                let _ = writeln!(
                    body,
                    "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>\
                     <rect x=\"{LABELS}\" y=\"{}\" width=\"{bar:.0}\" height=\"16\"/>\
                     <text x=\"{:.0}\" y=\"{y}\">{} {}</text>",
                    LABELS - 8,
                    escape(case),
                    y - 13,
                    LABELS as f64 + bar + 6.0,
                    number(median),
                    escape(&group.unit)
                );
                y += ROW;
            }
            y += ROW / 2;
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\">\n\
             <style>text {{ font: 13px sans-serif; fill: #222 }} .group, .title {{ font-weight: bold }} \
             rect {{ fill: #4477aa }} .paper {{ fill: #fff }}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" \
             height=\"{y}\"/>\n<text x=\"10\" y=\"18\" class=\"title\">{} (kernel {})</text>\n{body}</svg>\n",
            escape(name),
            self.kernel
        )
    }
}

struct Spread {
    least: f64,
    median: f64,
    greatest: f64,
}

impl Spread {
    /// Of at least one value.
    fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Spread { least: sorted[0], median: sorted[sorted.len() / 2], greatest: sorted[sorted.len() - 1] }
    }
}

/// Whole numbers where they are large enough.
fn number(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(Kernel::V6_1);
        let output = "warming up\nmeasure\tpath\tplain <forward>\tinstructions\t9085\n\
                      measure\tpath\tplain <forward>\tinstructions\t9079\n\
                      measure\tpath\tplain <forward>\tinstructions\t9200\nmeasure\tpath\tIPVS\tinstructions\t10683\n";
        assert_eq!(report.add(output).expect("measurements"), 4);
        report
    }

    #[test]
    fn markdown_shows_the_median_and_the_spread() {
        let text = report().markdown("packets");
        assert!(text.contains("| plain <forward> | 9085 | 9079 | 9200 | 3 |"), "{text}");
        assert!(text.contains("| IPVS | 10683 | 10683 | 10683 | 1 |"), "{text}");
    }

    #[test]
    fn svg_scales_bars_to_the_greatest_and_escapes() {
        let text = report().svg("packets");
        assert!(text.contains("width=\"410\" height=\"16\"") && text.contains("plain &lt;forward&gt;"), "{text}");
    }

    #[test]
    fn broken_measurements_are_errors_not_noise() {
        let mut report = report();
        assert_eq!(report.add("measured nothing\n").expect("noise"), 0);
        for bad in ["measure\ta\tb\tc", "measure\ta\tb\tc\tmany", "measure\ta\tb\tc\tNaN", "measure\tpath\tx\tns\t1"] {
            assert!(report.add(bad).is_err(), "{bad}");
        }
    }
}
