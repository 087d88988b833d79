"""Fifteen faults, each as a test with real parts; ``oracle`` says what holds of them all.

    1   a stage process dies           test_processes_at_steps: at the first, a middle and the last token, mid-prompt;
                                       test_processes: under four streams at once, and a whole node
    2   a node sleeps                  test_processes_at_steps: 1, 5 and 20 s
    3   a stage computes for ever      test_processes_at_steps: while its control thread answers, and with the
                                       interpreter held
    4   a link swallows what is sent   test_links: from a member, both ways, and between two stages
    5   a cable is pulled              test_links: again and again
    6   a host takes another address   test_links: in an answer, also another host's; idle: netns/test_cluster
    7   a slow link                    test_links: the whole link, and data alone
    8   the coordinator dies           test_processes_at_steps; over a network: netns/test_cluster
    9   a copied configuration         netns/test_cluster: test_a_copied_configuration_is_refused_…
    10  stages that do not fit         test_mismatches; real nodes: multiprocess/test_join_and_chat
    11  memory runs out                test_processes: in a stage process; test_processes_at_steps: a request that ends
                                       every process that computes it; too long a prompt: multiprocess/test_http_openai
    12  a client goes away             loopback/http_api/test_http_clients_gone, multiprocess/test_http_serve
    13  a client reads slowly          the same
    14  damaged frames                 test_frames; lies of a stage: test_lies; hostile ones:
                                       loopback/test_hostile_messages, test_hostile_pieces
    15  discovery fails                netns/test_cluster: without multicast, two clusters; netns/test_discovery: an
                                       interface that leads nowhere

``proxy`` damages frames on plain sockets, ``faulty_stage`` misbehaves in a stage process, signals and the namespaces of
``netns/net`` do the rest.
"""
