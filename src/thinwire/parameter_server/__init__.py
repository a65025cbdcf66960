"""The asynchronous exchange: servers hold the parameters, and no worker waits for another.

Server i of M holds rows i, i + M, i + 2M, ... of every parameter, with their optimisers' state. A
worker's step:

1. **Pull.** It names the rows that its next batch touches; each server answers with those that
   have changed since it last sent them to this worker.
2. **Compute**, on the values at hand, while the next batch's pull is on its way.
3. **Push** the gradients of the rows that the step touched, and go on at once; each server
   updates those rows.

The staleness of a push is the number of updates of the server since it answered the pull of that
step. This is asynchronous SGD with a parameter server (Li et al., OSDI 2014); the sampling of Xiao
et al. (IJCAI 2017) decides what is sent. The details are thinwire's own.

    protocol.py         the messages
    fields.py           what messages are made of, and the checks on it
    message_sizes.py    how many bytes each message has
    shard.py            one server's rows: answers pulls, applies pushes
    snapshot.py         what a shard holds at one moment, to be restored
    accumulation.py     pushes that are collected to be applied at once
    parameter_codec.py  how a parameter's values travel
    sharding.py         how the rows of M servers make one model
    server_scale.py     a checkpoint's optimiser state, at the scale of one worker or of servers
    finite.py           the check before parameters are evaluated or saved
    session.py          what a server knows of one worker
    server.py           answers the workers' messages
    controller.py       the interface between a server and the leader or follower
    serving_loop.py     what all servers do: answer a message at a time, and await goodbyes
    serve.py            sets up the first server
    leader.py           the first server: it steers the run and keeps its record
    followers.py        the other servers, as the first one sees them
    follower.py         a server other than the first
    assignments.py      which worker reads which part of the text
    resuming.py         where workers stand when a saved run continues
    staleness.py        the distribution of staleness
    worker.py           a worker's loop
    client.py           a worker's side: pulling and pushing
    requests.py         the rows that a step needs of each server
    connections.py      all servers, as one worker sees them
"""
