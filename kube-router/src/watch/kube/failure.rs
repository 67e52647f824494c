//! What went wrong with a request, sorted by what to do about it.

use std::{error::Error, fmt::Write, time::Duration};

/// A failed request of one kind. Two failures of equal verb and class are the same news.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) verb: &'static str,
    pub(super) class: Class,
    /// The details, for people.
    pub(super) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// 410: the resource version or continue token is too old. List again.
    Expired,
    /// 401: the server does not know us.
    Unauthenticated,
    /// 403: we may not do this.
    Forbidden,
    /// 404: this server has no such resource.
    NotServed,
    /// The server has the resource, but in no version that we read.
    OtherVersion,
    /// Another status: the server has troubles of its own.
    Server(u16),
    /// The connection cannot be made, or broke.
    Unreachable,
    /// The server takes the request and does not answer.
    Silent,
    /// An answer that is not what was asked for.
    Unreadable,
}

impl Failure {
    pub(super) fn status(verb: &'static str, code: u16, message: &str) -> Self {
        let class = match code {
            410 => Class::Expired,
            401 => Class::Unauthenticated,
            403 => Class::Forbidden,
            404 => Class::NotServed,
            code => Class::Server(code),
        };
        Failure { verb, class, text: message.to_owned() }
    }

    pub(super) fn request(verb: &'static str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Failure::status(verb, status.code, &status.message),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => Failure::unreadable(verb, chain(error)),
            _ => Failure { verb, class: Class::Unreachable, text: chain(error) },
        }
    }

    pub(super) fn unreadable(verb: &'static str, text: impl Into<String>) -> Self {
        Failure { verb, class: Class::Unreadable, text: text.into() }
    }

    pub(super) fn timeout(verb: &'static str, after: Duration) -> Self {
        Failure { verb, class: Class::Silent, text: format!("no answer within {} s", after.as_secs()) }
    }

    /// The sentence for the user: what failed, why, and what to do.
    pub(super) fn reason(&self, server: &str, group: &str, resource: &str) -> String {
        let (verb, text) = (self.verb, &self.text);
        let group = if group.is_empty() { "the core API group" } else { group };
        match self.class {
            Class::Expired => format!("{verb} {resource}: {text}"),
            Class::Unauthenticated => format!(
                "{verb} {resource}: {server} does not accept our credentials (401: {text}); check the token or client \
                 certificate in the kubeconfig, or the service account"
            ),
            Class::Forbidden => format!(
                "{verb} {resource}: forbidden (403: {text}); grant our user the verbs list and watch on {resource} in \
                 {group} (ClusterRole and ClusterRoleBinding)"
            ),
            Class::NotServed => {
                format!("{verb} {resource}: {server} does not serve {resource} of {group} (404: {text})")
            }
            Class::OtherVersion => {
                format!(
                    "{verb} {resource}: {server} serves it only as {text}; upgrade us, or serve such a version, too"
                )
            }
            Class::Server(code) => format!("{verb} {resource}: {server} answers with status {code}: {text}"),
            Class::Unreachable => format!(
                "{verb} {resource}: {server} cannot be reached ({text}); check its address, and certificate-authority \
                 in the kubeconfig if its certificate is refused"
            ),
            Class::Silent => format!("{verb} {resource}: {server} is too slow ({text})"),
            Class::Unreadable => format!("{verb} {resource}: {server} sent something else than {resource} ({text})"),
        }
    }
}

/// The error with its causes, each once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Many errors quote their cause already.
        if !text.contains(&next) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {next}");
        }
        cause = error.source();
    }
    text
}
