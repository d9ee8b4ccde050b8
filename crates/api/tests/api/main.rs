//! The HTTP edge over real sockets: public listener, internal listener, and the worker API's client against its server.

#[cfg(test)]
mod accounts;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod edge;
#[cfg(test)]
mod events;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod health;
#[cfg(test)]
mod live;
#[cfg(test)]
mod models;
#[cfg(test)]
mod oidc;
#[cfg(test)]
mod pods;
#[cfg(test)]
mod reads;
#[cfg(test)]
mod sqlite;
#[cfg(test)]
mod system;
#[cfg(test)]
mod tasks;
#[cfg(test)]
mod webhook;
#[cfg(test)]
mod words;
#[cfg(test)]
mod worker;
#[cfg(test)]
mod world;
