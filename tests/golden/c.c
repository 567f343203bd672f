//: a function
double area(double radius) {‸
//> 
//>     return M_PI * radius * radius;
//> }
//> 
//> int main
//= 
//=     return M_PI * radius * radius;
//= }

//: a condition
    if (circle == NULL) {
        ‸
    }
//> return -1;
//>     }
//= return -1;

//: a macro's arguments
    assert(‸);
//> radius > 0);
//= radius > 0

//: an include
#include ‸
//> <stdio.h>
//> #include <stdlib.h>
//= <stdio.h>

//: once more the same
    free(circle);
    ‸
//> free(circle);
//! stands above already

//: a switch with its cases
double area(struct shape *shape)
{
	switch (shape->kind) {‸
}
//> 
//> 	case CIRCLE:
//> 		return M_PI;
//> 	default:
//> 		return 0;
//> 	}
//> 	return 1;
//= 
//= 	case CIRCLE:
//= 		return M_PI;
//= 	default:
//= 		return 0;
//= 	}

//: a case of a switch
double area(struct shape *shape)
{
	switch (shape->kind) {
	default:‸
	}
}
//> 
//> 		log(shape);
//> 		return 0;
//> 	case SQUARE:
//> 		return 1;
//= 
//= 		log(shape);
//= 		return 0;

//: a label ends no block
int area(void)
{‸
//> 
//> 	if (failed())
//> 		goto out;
//> 	work();
//> out:
//> 	return 0;
//> }
//> 
//> int main
//= 
//= 	if (failed())
//= 		goto out;
//= 	work();
//= out:
//= 	return 0;
//= }

//: the preprocessor ends no block
void area(void) {‸
//> 
//>     start();
//> #ifdef DEBUG
//>     log();
//> #endif
//>     stop();
//> }
//> 
//> int main
//= 
//=     start();
//= #ifdef DEBUG
//=     log();
//= #endif
//=     stop();
//= }

//: parameters over several lines
static double area(double radius,
                   const char *unit) {‸
//> 
//>     check(unit);
//>     return M_PI * radius;
//> }
//> 
//> int main
//= 
//=     check(unit);
//=     return M_PI * radius;
//= }

//: an initializer over several lines
static const struct shape shapes[] = {‸
//> 
//>     { "circle", 1 },
//>     { "square", 2 },
//> };
//> 
//> int main
//= 
//=     { "circle", 1 },
//=     { "square", 2 },
//= };

//: the fields of a struct
struct circle {‸
//> 
//>     double radius;
//>     double x, y;
//> };
//> 
//> int main
//= 
//=     double radius;
//=     double x, y;
//= };

//: a loop with its condition behind it
int main(void) {
    do {‸
//> 
//>         step();
//>     } while (left());
//>     return 0;
//= 
//=         step();
//=     } while (left());

//: a call over several lines
int main(void) {
    printf(‸
//> "%f %s\n",
//>            area(circle),
//>            unit);
//>     return 0;
//= "%f %s\n",
//=            area(circle),
//=            unit);

//: no block in a string
int main(void) {
    printf("{‸
//> \"area\": 1}");
//>     return 0;
//= \"area\": 1}");

//: behind a comment the body is missing
int main(void) {
    /* nothing
     * to say */
    ‸
}
//> start();
//>     return 0;
//> }
//= start();
//=     return 0;
