//! An application that calls others while it serves a request.

use super::ask::{Ask, Call, HandOn, Id};
use super::http1::client::{Connection, Exchange, To};
use super::server::Shared;
use crate::truth::ExchangeRecord;

/// Makes the calls that are asked for, and writes each down.
pub fn make(shared: &Shared, ask: &Ask, serving: &ExchangeRecord) {
    if ask.together {
        std::thread::scope(|scope| {
            for call in &ask.calls {
                scope.spawn(|| one(shared, call, serving));
            }
        });
    } else {
        ask.calls.iter().for_each(|call| one(shared, call, serving));
    }
}

fn one(shared: &Shared, call: &Call, serving: &ExchangeRecord) {
    let to = To { host: call.host.clone(), address: call.address };
    let id = match (call.id, &serving.request_id) {
        (HandOn::Same, Some(id)) => Id::Given(id.clone()),
        (HandOn::Another, _) => Id::Own,
        (HandOn::Same | HandOn::None, _) => Id::None,
    };
    let what = Exchange { id, ask: call.ask.clone(), ..Exchange::get(&call.ask.case) };
    match Connection::open(&to) {
        Ok(mut connection) => {
            let (record, _) = connection.exchange(&what);
            shared.log(ExchangeRecord { pod: shared.workload.clone(), parent: Some(serving.nonce), ..record });
        }
        // What was not sent is no exchange; the application's log of errors says so.
        Err(error) => eprintln!("{} cannot be reached: {error}", call.address),
    }
}
