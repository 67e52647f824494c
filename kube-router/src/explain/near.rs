//! Names that are close to one that does not exist.

/// More would not be read.
const MOST: usize = 5;

/// The closest of `known`, best first: few letters apart, or one inside the other.
pub fn near(wanted: &str, known: impl Iterator<Item = String>) -> Vec<String> {
    let own = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let wanted_name = own(wanted);
    let mut ranked: Vec<(usize, String)> = known
        .filter_map(|name| {
            let distance = distance(wanted, &name);
            let last = own(&name);
            // The right name in another namespace, or the start of a name that a controller made longer.
            let related = last == wanted_name || wanted_name.len() > 2 && last.contains(&wanted_name);
            let close = distance <= 1 + wanted.chars().count() / 4;
            (close || related).then_some((distance, name))
        })
        .collect();
    ranked.sort();
    ranked.dedup();
    ranked.into_iter().take(MOST).map(|(_, name)| name).collect()
}

/// Levenshtein's: letters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_come_first_and_strangers_not_at_all() {
        let known = ["web/frontend-7d9", "web/frontend", "shop/fronted", "db/postgres", "web/backend"];
        let of = |wanted| near(wanted, known.iter().map(|name| (*name).to_owned()));
        assert_eq!(of("web/fronted"), ["web/frontend", "shop/fronted"]);
        assert_eq!(of("default/postgres"), ["db/postgres"]);
        assert_eq!(of("web/frontend-7d"), ["web/frontend-7d9", "web/frontend"]);
        assert_eq!(of("x/y"), Vec::<String>::new());
    }

    #[test]
    fn distances() {
        for (a, b, apart) in [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0), ("ab", "ba", 2)] {
            assert_eq!(distance(a, b), apart, "{a} {b}");
        }
    }
}
