//! Real processes and real protocols, on loopback: one binary, one module for each subject.

mod accounts;
mod adding;
mod admin;
mod brokers;
mod choice;
mod crash;
mod document;
mod fix;
mod github;
mod hostile_issues;
mod hostile_models;
mod inference;
mod intake;
mod ledger;
mod monitoring;
mod nix;
mod pages;
mod postgres;
mod progress;
mod rabbitmq;
mod redis;
mod service;
mod snapshot;
mod traces;
mod units;
mod webhook;
