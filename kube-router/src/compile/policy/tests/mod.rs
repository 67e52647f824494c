mod bad;
mod events;
mod prefix;
mod random;
mod scenarios;
mod world;
