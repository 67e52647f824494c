//! The help texts, made from the flag table: grouped by area, 100 columns, defaults shown.

use std::fmt::Write as _;

use super::{
    flags::{Area, Flag, TABLE},
    look::{self, Form},
};

const WIDTH: usize = 100;
/// Column at which the descriptions start.
const INDENT: usize = 36;
/// Marks a flag whose function is not there yet.
const LATER: &str = "[later]";

/// The command forms, shared by the long help and the hint after a usage error.
pub fn forms(program: &str) -> String {
    format!(
        "Usage of {program}:
  kube-router [flags]               run the agent on this node
  kube-router plan [flags]          print what the agent would program ('plan --help')
  kube-router dump WHAT             show services, problems, policy, flows ('dump --help')
  kube-router explain [flags]       may A talk to B, and which rule says so? ('explain --help')
  kube-router matrix [flags]        who can talk to whom ('matrix --help')
  kube-router monitor [flags]       refused packets and new flows, live ('monitor --help')
  kube-router replay FILE [flags]   run recorded events through the agent ('replay --help')
"
    )
}

/// `kube-router --help`.
pub fn agent(program: &str) -> String {
    let mut out = forms(program);
    out.push_str(&format!(
        "
Flags are --name=value or --name value; true-or-false flags are --name or --name=false. Durations:
300ms, 5s, 1m, 2h22m. Lists: commas, repeated flags, or both. Of other flags the last one counts.
{LATER} marks what a coming release brings: asking for it stops the start, defaults go without it.
"
    ));
    for area in Area::ALL {
        write!(out, "\n{}:\n", area.title()).unwrap_or_default();
        TABLE.iter().filter(|flag| flag.area == area).for_each(|flag| describe(&mut out, flag));
    }
    out.push_str(
        "
Environment:
  NODE_NAME                         Node object's name, if --hostname-override is not given.
  KUBERNETES_SERVICE_HOST, _PORT    API server, if neither --kubeconfig nor --master is given.
  RUST_LOG                          Log filter, instead of -v: kube_router=debug,kube=info
  KUBE_ROUTER_CNI_CONF_FILE         CNI configuration file (pod networking). [later]
  POD_NAME, POD_NAMESPACE           Who and where the allocator's leader is. [later]
",
    );
    out
}

/// `kube-router plan --help`.
pub fn plan(program: &str) -> String {
    format!(
        "Usage of {program} plan:
  kube-router plan --manifests=DIR --hostname-override=NODE [-o text|json] [flags]

Reads the objects once and prints what the agent would program for services on that node: virtual
servers as ipvsadm -Sn prints them, addresses, sets, and every problem. Network policy is looked at
with 'explain' and 'matrix'. Needs no root and touches no kernel. Takes all flags of the agent.

  -o, --output string   text (default) or json
"
    )
}

/// `--help` of a command with few flags.
pub fn look(program: &str, form: Form) -> String {
    let (forms, text) = match form {
        Form::Dump => (
            "  kube-router dump services|problems|policy|endpoints|flows|backends [-o text|json]\n",
            "services   every virtual server that the running agent wants, with its endpoints
problems   what it cannot do, and why
policy     rows of the kernel's table of policy: groups of pods, peers, ports, and the rule
endpoints  this node's pods as the kernel knows them: number, address, interface, groups
flows      live flows of pods, with state, age and the rule that allowed them
backends   destinations of services on the fast path: number, address, state, connections
The last four read pinned BPF maps; names come from the agent, and without it there are numbers.
",
        ),
        Form::Explain => (
            "  kube-router explain --from=NS/POD|IP --to=NS/POD|IP|NS/SERVICE [--port=tcp/80]
  kube-router explain --manifests=DIR --from=... --to=...
  kube-router explain --recording=FILE --from=... --to=...
",
            "Says what both ends do with new connections: which policies isolate them, and which rule allows or
that none does. A service is followed to each of its endpoints. On a node the agent is asked,
and what it says is compared with the kernel's tables. Exit status: 0 allowed, 1 denied (or not
every way allowed), 2 error, 3 the kernel's tables differ from what the agent wants.
",
        ),
        Form::Matrix => (
            "  kube-router matrix [--namespace=NS] [-o text|json|html]
  kube-router matrix --manifests=DIR [--namespace=NS] [-o text|json|html]
",
            "Prints a table of all pods: who can open connections to whom, at which ports. Pods that no policy
tells apart share a row. With -o html a page that shows the deciding rule of each cell.
",
        ),
        Form::Monitor => (
            "  kube-router monitor [--drops] [--pod=NS/NAME] [--json] [--pcap=FILE]\n",
            "Prints refused packets and new flows of this node's pods as they happen, with the rule that decided.
New flows are told only while somebody asks for them, at most 10,000 a second.
",
        ),
    };
    let mut out = format!("Usage of {program} {}:\n{forms}\n{text}\n", form.name());
    for flag in look::flags_of(form) {
        let short = flag.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
        let head = format!("  {short}--{} {}", flag.name, flag.type_name);
        writeln!(out, "{:<28}{}", head.trim_end(), flag.help).unwrap_or_default();
    }
    out
}

/// `kube-router replay --help`.
pub fn replay(program: &str) -> String {
    format!(
        "Usage of {program} replay:
  kube-router replay FILE [flags]

Runs the events of a file written with --record through the agent's decisions and prints them.
Touches nothing, needs no root and no API server. Give the flags and the --hostname-override of the
recorded agent.
"
    )
}

fn describe(out: &mut String, flag: &Flag) {
    let short = flag.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
    let head = format!("  {short}--{} {}", flag.name, flag.type_name);
    let head = head.trim_end();
    let mut text = flag.help.to_owned();
    let shown = match (flag.type_name, flag.default) {
        // Zero values say nothing.
        (_, "" | "0" | "0s" | "false") => None,
        (_, default) => Some(default),
    };
    if let Some(default) = shown {
        write!(text, " (default {default})").unwrap_or_default();
    }
    if flag.need.waits() {
        write!(text, " {LATER}").unwrap_or_default();
    }
    let mut lines = wrap(&text, WIDTH - INDENT).into_iter();
    if head.len() + 2 > INDENT {
        out.push_str(head);
        out.push('\n');
    } else {
        let first = lines.next().unwrap_or_default();
        writeln!(out, "{head:<INDENT$}{first}").unwrap_or_default();
    }
    for line in lines {
        writeln!(out, "{:INDENT$}{line}", "").unwrap_or_default();
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
