//! The life of one bundle on the box, as a value and a pure function.
//!
//! ```text
//!            Offered        Accepted       Planned        Stored (fsync)
//!   at rest ---------> Received ----> Verified ----> Planned ----> Staged
//!      ^                  |              |              |             | Begun
//!      |  Refused,        |              |              |             v
//!      +--Unchanged-------+--------------+--------------+         Applying
//!      |                                                Served |     | Broken
//!      |                                                       v     |
//!      |                              Kept                  Probing  |
//!      +----------- Confirmed <--------------------------------+     |
//!      |                                                Broken |     |
//!      |                              Reverted                 v     v
//!      +----------- RolledBack <---------------------------- RollingBack
//! ```
//!
//! At rest are `Idle`, `Confirmed` and `RolledBack`. From Staged on, the journal holds the state;
//! what a crash leaves there is settled by [`reconcile`] against `postern-net`'s last known good,
//! which alone says what is in force.

use serde::{Deserialize, Serialize};

use crate::plan::Generation;

/// Where a bundle is.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub(crate) enum State {
    /// Nothing was ever confirmed; the rescue plan is in force.
    #[default]
    Idle,
    /// Bytes have come in; nobody has looked at them.
    Received,
    /// Signature, target, serial and content are good.
    Verified {
        /// Which one.
        generation: Generation,
    },
    /// Every process's part of it is known.
    Planned {
        /// Which one.
        generation: Generation,
    },
    /// It is on disk and survives a power cut.
    Staged {
        /// Which one.
        generation: Generation,
    },
    /// The kernel, the host and the services are being changed.
    Applying {
        /// Which one.
        generation: Generation,
    },
    /// It runs; what it must be able to do is being tried.
    Probing {
        /// Which one.
        generation: Generation,
    },
    /// It is last known good.
    Confirmed {
        /// Which one.
        generation: Generation,
    },
    /// What was before is being put back.
    RollingBack {
        /// Which one did not work.
        generation: Generation,
        /// What was wrong with it.
        reason: String,
    },
    /// What was before runs again.
    RolledBack {
        /// Which one did not work.
        generation: Generation,
        /// What was wrong with it.
        reason: String,
    },
}

/// What happens to a bundle.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Somebody brought one.
    Offered,
    /// It was judged good.
    Accepted(Generation),
    /// It was refused; `confirmed` is what stays in force.
    Refused {
        /// Last known good.
        confirmed: Option<Generation>,
    },
    /// It is the one in force.
    Unchanged(Generation),
    /// Its parts are known.
    Planned,
    /// It is on disk.
    Stored,
    /// The first change is about to be made.
    Begun,
    /// Everything was changed and every service is ready.
    Served,
    /// Everything it must be able to do, it can; `postern-net` has made it last known good.
    Kept,
    /// Something does not hold.
    Broken(String),
    /// What was before is back.
    Reverted,
}

/// A step that makes no sense where the bundle is: a fault in this program.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no step {step:?} from {state:?}")]
pub(crate) struct StepError {
    state: State,
    step: Step,
}

impl State {
    /// Returns where `step` leads.
    ///
    /// # Errors
    ///
    /// Returns [`StepError`] for an arrow that the diagram does not have.
    pub(crate) fn next(self, step: Step) -> Result<Self, StepError> {
        Ok(match (self, step) {
            (Self::Idle | Self::Confirmed { .. } | Self::RolledBack { .. }, Step::Offered) => {
                Self::Received
            }
            (Self::Received, Step::Accepted(generation)) => Self::Verified { generation },
            (Self::Verified { generation }, Step::Planned) => Self::Planned { generation },
            (
                Self::Received | Self::Verified { .. } | Self::Planned { .. },
                Step::Refused { confirmed },
            ) => Self::at_rest(confirmed),
            (
                Self::Received | Self::Verified { .. } | Self::Planned { .. },
                Step::Unchanged(generation),
            ) => Self::Confirmed { generation },
            (Self::Planned { generation }, Step::Stored) => Self::Staged { generation },
            (Self::Staged { generation }, Step::Begun) => Self::Applying { generation },
            (Self::Applying { generation }, Step::Served) => Self::Probing { generation },
            (Self::Probing { generation }, Step::Kept) => Self::Confirmed { generation },
            (
                Self::Applying { generation } | Self::Probing { generation },
                Step::Broken(reason),
            ) => Self::RollingBack { generation, reason },
            (Self::RollingBack { generation, reason }, Step::Reverted) => {
                Self::RolledBack { generation, reason }
            }
            (state, step) => return Err(StepError { state, step }),
        })
    }

    /// The state of a box on which nothing is going on.
    pub(crate) fn at_rest(confirmed: Option<Generation>) -> Self {
        confirmed.map_or(Self::Idle, |generation| Self::Confirmed { generation })
    }

    /// Which bundle it speaks of.
    pub(crate) fn generation(&self) -> Option<&Generation> {
        match self {
            Self::Idle | Self::Received => None,
            Self::Verified { generation }
            | Self::Planned { generation }
            | Self::Staged { generation }
            | Self::Applying { generation }
            | Self::Probing { generation }
            | Self::Confirmed { generation }
            | Self::RollingBack { generation, .. }
            | Self::RolledBack { generation, .. } => Some(generation),
        }
    }

    /// The word that status and the log use.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Received => "received",
            Self::Verified { .. } => "verified",
            Self::Planned { .. } => "planned",
            Self::Staged { .. } => "staged",
            Self::Applying { .. } => "applying",
            Self::Probing { .. } => "probing",
            Self::Confirmed { .. } => "confirmed",
            Self::RollingBack { .. } => "rolling-back",
            Self::RolledBack { .. } => "rolled-back",
        }
    }
}

/// What the agent does first, after a start.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Recovery {
    /// Nothing was under way.
    Rest(State),
    /// A change was under way: take it back, then rest in that state.
    Revert(State),
}

/// Settles what the journal says with what `postern-net` has confirmed.
pub(crate) fn reconcile(journal: State, confirmed: Option<Generation>) -> Recovery {
    match journal {
        // The rename of lkg came before the crash, the journal did not: it is confirmed.
        State::Applying { generation } | State::Probing { generation }
            if Some(&generation) != confirmed.as_ref() =>
        {
            let reason = "the agent restarted before it was confirmed".to_owned();
            Recovery::Revert(State::RolledBack { generation, reason })
        }
        State::RollingBack { generation, reason } => {
            Recovery::Revert(State::RolledBack { generation, reason })
        }
        State::RolledBack { generation, reason } if Some(&generation) != confirmed.as_ref() => {
            Recovery::Rest(State::RolledBack { generation, reason })
        }
        _ => Recovery::Rest(State::at_rest(confirmed)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Recovery, State, Step, reconcile};
    use crate::plan::Generation;

    fn generation(serial: u64) -> Generation {
        Generation { serial, digest: format!("{serial:064}") }
    }

    /// Every state on the way of serial 8, with serial 7 confirmed before.
    fn way() -> Vec<State> {
        let new = generation(8);
        let reason = "dns".to_owned();
        vec![
            State::Idle,
            State::Received,
            State::Verified { generation: new.clone() },
            State::Planned { generation: new.clone() },
            State::Staged { generation: new.clone() },
            State::Applying { generation: new.clone() },
            State::Probing { generation: new.clone() },
            State::Confirmed { generation: new.clone() },
            State::RollingBack { generation: new.clone(), reason: reason.clone() },
            State::RolledBack { generation: new, reason },
        ]
    }

    fn steps() -> Vec<Step> {
        vec![
            Step::Offered,
            Step::Accepted(generation(8)),
            Step::Refused { confirmed: Some(generation(7)) },
            Step::Unchanged(generation(8)),
            Step::Planned,
            Step::Stored,
            Step::Begun,
            Step::Served,
            Step::Kept,
            Step::Broken("dns".to_owned()),
            Step::Reverted,
        ]
    }

    #[test]
    fn the_diagram_is_all_there_is() {
        // One row per state of `way`, one column per step of `steps`: the name of the next state.
        let table = [
            ("idle", "received - - - - - - - - - -"),
            ("received", "- verified confirmed confirmed - - - - - - -"),
            ("verified", "- - confirmed confirmed planned - - - - - -"),
            ("planned", "- - confirmed confirmed - staged - - - - -"),
            ("staged", "- - - - - - applying - - - -"),
            ("applying", "- - - - - - - probing - rolling-back -"),
            ("probing", "- - - - - - - - confirmed rolling-back -"),
            ("confirmed", "received - - - - - - - - - -"),
            ("rolling-back", "- - - - - - - - - - rolled-back"),
            ("rolled-back", "received - - - - - - - - - -"),
        ];
        for (state, (name, row)) in way().into_iter().zip(table) {
            assert_eq!(state.name(), name);
            let got: Vec<&str> = steps()
                .into_iter()
                .map(|step| state.clone().next(step).map_or("-", |next| next.name()))
                .collect();
            assert_eq!(got.join(" "), row, "from {name}");
        }
    }

    #[test]
    fn a_refused_bundle_leaves_what_was_confirmed() {
        let refused = Step::Refused { confirmed: Some(generation(7)) };

        let state = State::Received.next(refused).unwrap();

        assert_eq!(state, State::Confirmed { generation: generation(7) });
    }

    #[test]
    fn a_crash_at_any_step_before_the_confirmation_ends_at_last_known_good() {
        for state in way() {
            if matches!(state, State::Confirmed { .. }) {
                continue;
            }
            let recovery = reconcile(state.clone(), Some(generation(7)));
            match state.name() {
                "applying" | "probing" | "rolling-back" => {
                    let Recovery::Revert(State::RolledBack { generation: bad, .. }) = recovery
                    else {
                        panic!("{} must be taken back", state.name());
                    };
                    assert_eq!(bad, generation(8));
                }
                "rolled-back" => assert_eq!(recovery, Recovery::Rest(state)),
                _ => {
                    let rest = State::Confirmed { generation: generation(7) };
                    assert_eq!(recovery, Recovery::Rest(rest), "{}", state.name());
                }
            }
        }
    }

    #[test]
    fn a_crash_between_the_commit_and_the_journal_is_confirmed() {
        let confirmed = Some(generation(8));

        for state in way().into_iter().filter(|state| state.name() != "rolling-back") {
            let rest = Recovery::Rest(State::Confirmed { generation: generation(8) });
            assert_eq!(reconcile(state, confirmed.clone()), rest);
        }
    }

    #[test]
    fn a_journal_that_says_confirmed_yields_to_last_known_good() {
        let journal = State::Confirmed { generation: generation(8) };

        let recovery = reconcile(journal, Some(generation(7)));

        assert_eq!(recovery, Recovery::Rest(State::Confirmed { generation: generation(7) }));
    }
}
