//! Parties of one namespace that are the same to everybody become one.

use super::parties::Kind;

pub struct Merged {
    pub parties: Vec<Kind>,
    pub cells: Vec<Vec<Option<usize>>>,
}

type Cells = Vec<Vec<Option<usize>>>;

/// In: parties with their cells. Out: fewer of both, each cell as it was for every pair of members.
pub fn merge(all: Vec<Kind>, cells: Cells) -> Merged {
    // Places of the parties that stay, each with those that it stands for.
    let mut kept: Vec<Vec<usize>> = Vec::new();
    for i in 0..all.len() {
        let same = |group: &Vec<usize>| group.iter().all(|k| are_twins(&all, &cells, *k, i));
        match kept.iter_mut().find(|group| same(group)) {
            Some(group) => group.push(i),
            None => kept.push(vec![i]),
        }
    }
    // A pod alone knows only itself; with a twin there is a pair to show.
    let cell = |from: &[usize], to: &[usize]| match (from, to) {
        ([first, second, ..], [same, ..]) if first == same => cells[*first][*second],
        ([from, ..], [to, ..]) => cells[*from][*to],
        _ => None,
    };
    let merged = kept.iter().map(|from| kept.iter().map(|to| cell(from, to)).collect()).collect();
    let mut all: Vec<Option<Kind>> = all.into_iter().map(Some).collect();
    let mut parties = Vec::with_capacity(kept.len());
    for group in kept {
        let mut members = group.into_iter().filter_map(|place| all[place].take());
        if let Some(mut first) = members.next() {
            members.for_each(|other| first.join(other));
            parties.push(first);
        }
    }
    Merged { parties, cells: merged }
}

/// Is nobody able to tell the two apart, themselves included?
fn are_twins(all: &[Kind], cells: &Cells, a: usize, b: usize) -> bool {
    let (one, other) = (&all[a], &all[b]);
    if !one.has_pods() || one.namespace() != other.namespace() || cells[a][b] != cells[b][a] {
        return false;
    }
    // The pair within a party, where it has two.
    let inner_fits = |kind: &Kind, place: usize| kind.addresses(true).is_none() || cells[place][place] == cells[a][b];
    inner_fits(one, a)
        && inner_fits(other, b)
        && (0..all.len())
            .filter(|j| *j != a && *j != b)
            .all(|j| cells[a][j] == cells[b][j] && cells[j][a] == cells[j][b])
}
