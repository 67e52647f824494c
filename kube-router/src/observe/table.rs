//! Text tables for people: aligned columns, one line per virtual server, its destinations below it.

use std::{borrow::Cow, fmt::Write, net::SocketAddr};

use super::{DestinationRow, PathRow, ProblemRow, ServiceRow};

const PROBLEM_HEADINGS: [&str; 3] = ["SUBJECT", "REASON", "TEXT"];
const HEADINGS: [&str; 7] =
    ["SERVICE", "PORT NAME", "ORIGIN", "VIRTUAL SERVER", "SCHEDULER", "DESTINATIONS", "NEW FLOWS"];
/// Between columns.
const GAP: usize = 2;

/// The table of `kube-router dump services`, sorted by service, then virtual server.
pub fn services(rows: &[ServiceRow]) -> String {
    let mut rows: Vec<&ServiceRow> = rows.iter().collect();
    rows.sort_by_key(|row| (&row.service, row.address, row.protocol, row.port));
    let lines: Vec<[Cow<'_, str>; 7]> = rows.iter().map(|row| columns(row)).collect();
    let widths = widths(&HEADINGS, &lines);
    let mut text = String::new();
    let told = if rows.iter().any(|row| row.path.is_some()) { HEADINGS.len() } else { HEADINGS.len() - 1 };
    write_line(&mut text, &HEADINGS[..told], &widths);
    for (row, line) in rows.iter().zip(&lines) {
        write_line(&mut text, line, &widths);
        for destination in &row.destinations {
            write_destination(&mut text, destination);
        }
    }
    text
}

/// The table of `kube-router dump problems`, sorted by subject.
pub fn problems(rows: &[ProblemRow]) -> String {
    let cells = |row: &ProblemRow| [&row.subject, &row.reason, &row.text].map(|cell| printable(cell.clone().into()));
    let mut lines: Vec<[Cow<'_, str>; 3]> = rows.iter().map(cells).collect();
    lines.sort();
    let widths = widths(&PROBLEM_HEADINGS, &lines);
    let mut text = String::new();
    write_line(&mut text, &PROBLEM_HEADINGS, &widths);
    lines.iter().for_each(|line| write_line(&mut text, line, &widths));
    text
}

fn widths<const N: usize>(headings: &[&str; N], lines: &[[Cow<'_, str>; N]]) -> [usize; N] {
    std::array::from_fn(|column| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    })
}

fn columns(row: &ServiceRow) -> [Cow<'_, str>; 7] {
    [
        printable(row.service.to_string().into()),
        if row.port_name.is_empty() { "-".into() } else { printable((&row.port_name).into()) },
        printable((&row.origin).into()),
        format!("{} {}", row.protocol, SocketAddr::new(row.address, row.port)).into(),
        scheduler(row).into(),
        row.destinations.len().to_string().into(),
        row.path.as_ref().map_or_else(|| "".into(), |path| way(path).into()),
    ]
}

/// `fast, number 7, 3 slots`
fn way(row: &PathRow) -> String {
    match (row.number, row.slots) {
        (Some(number), Some(slots)) => format!("{}, number {number}, {slots} slots", row.path),
        _ => row.path.clone(),
    }
}

/// As ipvsadm says it: `mh mh-fallback persistent 10800`.
fn scheduler(row: &ServiceRow) -> String {
    let mut text = row.scheduler.clone();
    for flag in &row.sched_flags {
        text.push(' ');
        text.push_str(flag);
    }
    if let Some(seconds) = row.persistence_s {
        // Writing to a String cannot fail.
        let _ = write!(text, " persistent {seconds}");
    }
    text
}

fn write_destination(text: &mut String, destination: &DestinationRow) {
    let DestinationRow { address, weight, draining } = destination;
    let draining = if *draining { " draining" } else { "" };
    let _ = writeln!(text, "  -> {address} weight {weight}{draining}");
}

fn write_line<C: AsRef<str>>(text: &mut String, cells: &[C], widths: &[usize]) {
    let start = text.len();
    for (cell, width) in cells.iter().zip(widths) {
        let width = width + GAP;
        let _ = write!(text, "{:<width$}", cell.as_ref());
    }
    text.truncate(start + text[start..].trim_end().len());
    text.push('\n');
}

/// Names may come from a file that nobody validated: a control character must not reach the terminal.
fn printable(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.chars().any(char::is_control) { text.escape_debug().to_string().into() } else { text }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::objects::{ObjectKey, Protocol};

    pub fn row(name: &str, address: &str, port: u16) -> ServiceRow {
        ServiceRow {
            service: ObjectKey::new("web", name),
            port_name: "http".into(),
            origin: "ClusterIP".into(),
            address: address.parse().unwrap(),
            protocol: Protocol::Tcp,
            port,
            scheduler: "rr".into(),
            sched_flags: Vec::new(),
            persistence_s: None,
            destinations: Vec::new(),
            path: None,
        }
    }

    #[test]
    fn who_has_new_flows_is_told_where_somebody_knows() {
        let path = |path: &str, number, slots| Some(PathRow { path: path.into(), number, slots });
        let fast = ServiceRow { path: path("fast", Some(7), Some(3)), ..row("a", "10.96.0.1", 80) };
        let ipvs = ServiceRow { path: path("IPVS: SCTP", None, None), ..row("b", "10.96.0.2", 80) };
        let text = services(&[fast, ipvs]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("DESTINATIONS  NEW FLOWS"), "{text}");
        assert!(lines[1].ends_with("fast, number 7, 3 slots") && lines[2].ends_with("IPVS: SCTP"), "{text}");
        assert!(!services(&[row("a", "10.96.0.1", 80)]).contains("NEW FLOWS"));
    }

    #[test]
    fn columns_line_up_and_rows_are_sorted() {
        let mut affinity = row("affinity", "fd00:10:96::106", 443);
        affinity.persistence_s = Some(10800);
        affinity.scheduler = "mh".into();
        affinity.sched_flags = vec!["mh-fallback".into()];
        let destination =
            |address: &str, weight, draining| DestinationRow { address: address.parse().unwrap(), weight, draining };
        affinity.destinations = vec![destination("[fd00::10]:8080", 1, false), destination("[fd00::11]:8080", 0, true)];
        let mut unnamed = row("a", "10.1.0.1", 80);
        unnamed.port_name = String::new();
        let table = services(&[row("web-frontend", "10.1.0.1", 443), affinity, unnamed]);
        assert_eq!(
            table,
            "\
SERVICE           PORT NAME  ORIGIN     VIRTUAL SERVER             SCHEDULER                        DESTINATIONS
web/a             -          ClusterIP  tcp 10.1.0.1:80            rr                               0
web/affinity      http       ClusterIP  tcp [fd00:10:96::106]:443  mh mh-fallback persistent 10800  2
  -> [fd00::10]:8080 weight 1
  -> [fd00::11]:8080 weight 0 draining
web/web-frontend  http       ClusterIP  tcp 10.1.0.1:443           rr                               0
"
        );
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let mut nasty = row("x\u{1b}[2J", "10.1.0.1", 443);
        nasty.port_name = "\n".into();
        let table = services(&[nasty]);
        assert_eq!(table.lines().count(), 2);
        assert!(!table.contains('\u{1b}'), "{table:?}");
    }

    #[test]
    fn problems_line_up_sorted_and_in_one_line_each() {
        let row = |subject: &str, text: &str| ProblemRow {
            subject: subject.into(),
            reason: "InvalidPort".into(),
            text: text.into(),
        };
        let table = problems(&[row("Service web/b", "no\n\u{1b}[2J"), row("Node n", "port 0")]);
        assert_eq!(
            table,
            "\
SUBJECT        REASON       TEXT
Node n         InvalidPort  port 0
Service web/b  InvalidPort  no\\n\\u{1b}[2J
"
        );
    }

    #[test]
    fn nothing_is_a_heading() {
        assert_eq!(services(&[]), format!("{}\n", HEADINGS[..6].join("  ")));
    }
}
